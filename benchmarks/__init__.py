"""Timings of the product, as ratios of two things run in turn in one process: `make bench`."""
