"""The judge behind HTTP: one batcher, and a file for each protocol that callers speak."""
