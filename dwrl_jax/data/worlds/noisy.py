"""Noisy labels, drawn at 0.4 of the quality difference, in training and held out: even the ceiling is low."""

from dwrl_jax.data.worlds import Rules

RULES = Rules(label_scale=0.4, thinks_in="plain")
