"""A plan becomes a smaller model, repaired or not, and is counted."""
