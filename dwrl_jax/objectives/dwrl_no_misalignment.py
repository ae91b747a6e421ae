"""DWRL without the instance-wise weight: the ablation of arXiv 2510.15242.

In both steps the constant 1 replaces w_mis = p- / (p+ + p-), and nothing else changes. Every pair then has the weight
of a pair that the model gets completely wrong. So the score step ascends log p+ - log p- and not
log sigmoid(log p+ - log p-). The difference log p+ - log p- has no upper bound.
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
