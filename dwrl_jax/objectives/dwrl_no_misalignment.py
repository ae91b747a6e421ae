"""DWRL without the instance-wise weight: the ablation of arXiv 2510.15242.

w_mis = p- / (p+ + p-) is replaced by the constant 1 in both steps, and nothing else changes: every pair pulls as
hard as one that the model gets wholly wrong, however sure and right it is. The score step then ascends
log p+ - log p- itself instead of log sigmoid(log p+ - log p-), which has no maximum.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.objectives import Objective, dwrl

Hyper = dwrl.Updates


def constant_weight(log_score: Float[Array, "B S"]) -> Float[Array, " B"]:
    """1 for every pair, in the place of `dwrl.misalignment_weight`."""
    return jnp.ones(len(log_score))


phases = functools.partial(dwrl.updates, instance_weight=constant_weight)


OBJECTIVE = Objective(Hyper, phases, judges=("verdict", "score"), panels=dwrl.OBJECTIVE.panels)
