"""Where texts and questions come from."""
