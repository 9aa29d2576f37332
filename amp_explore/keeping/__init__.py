"""What is kept: the store, its keys, the evidence, and the queue of jobs."""
