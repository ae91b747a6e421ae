"""Pairs out of files and out of the built-in world, their tokens, and the batches of a run."""
