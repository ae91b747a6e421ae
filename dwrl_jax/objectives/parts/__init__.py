"""Losses, metrics and panels that several objectives share."""
