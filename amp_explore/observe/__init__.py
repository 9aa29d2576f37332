"""What a model does on a text, collected layer by layer."""
