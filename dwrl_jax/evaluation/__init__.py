"""Held-out pairs: the scores of a judge, and the metrics that follow from them."""
