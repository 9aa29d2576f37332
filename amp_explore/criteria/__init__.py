"""Which units matter."""
