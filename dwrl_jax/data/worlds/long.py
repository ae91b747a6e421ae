"""Chains of eight operations: a thought has more steps to get right, and a guess without them is worth no more."""

from dwrl_jax.data.worlds import Rules

RULES = Rules(operations=8)
