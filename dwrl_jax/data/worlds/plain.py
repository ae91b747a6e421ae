"""The world as README describes it: five operations, and as many different pairs as a run asks for."""

from dwrl_jax.data.worlds import Rules

RULES = Rules()
