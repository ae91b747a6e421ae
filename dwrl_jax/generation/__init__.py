"""Thoughts and their log-probabilities: sampling and teacher forcing."""
