"""How layers share what goes."""
