"""What a model is worth: perplexity, accuracy, speed."""
