"""Pairs from files and from the built-in world, their tokens, and the batches of a run."""
