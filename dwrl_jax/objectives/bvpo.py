"""BVPO on DWRL: the gradient with thoughts, mixed with that of the empty thought (arXiv 2510.05095).

    g = alpha g_t + (1 - alpha) g_e

g_t is noisy, for its thoughts are drawn; g_e has no such noise, but is the gradient of another objective: biased. The
mixture has the mean squared error

    E|g - g*|^2 = alpha^2 A + 2 alpha (1 - alpha) C + (1 - alpha)^2 E
    A = E|g_t - g*|^2 = tr Var g_t + |b_t|^2,   E = E|g_e - g*|^2,   C = E<g_t - g*, g_e - g*>

around the true gradient g*, which is least at alpha* = (E - C) / (A + E - 2 C).

The paper has this for DPO, a policy's answers and its traces. We know its mixture and that it has a closed form for
alpha*, not its text. What is (ours):

1. g_t is DWRL's joint gradient over n thoughts, g_e that of `bt_token`: the judge asked at once for its answer;
2. the derivation of alpha* above, and `trace_alpha`, what is left of it without the biases that nobody can know;
3. alpha is a constant of the run: to know A, C and E takes several gradients of the same pairs;
4. the empty thought is one more branch of the group, behind those that were drawn: the prefix is paid once.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective, bt_token, dwrl
from dwrl_jax.objectives.parts.panels import LEARNING, RESPONSES, Panel
from dwrl_jax.objectives.parts.policy import Policy


@dataclasses.dataclass(frozen=True)
class Hyper(Policy):
    """`alpha` is the weight of the gradient with thoughts; the rest is that gradient's, as in `dwrl`."""

    alpha: float = setting(0.5, "weight of the gradient with thoughts; the rest is that without", at_least=0, at_most=1)
    baseline: Literal["none", "mean", "leave_one_out"] = setting("mean", dwrl.BASELINE)


def phases(hyper: Hyper):
    """One update by the mixed gradient."""
    return {"mixed": functools.partial(mixed_loss, hyper=hyper)}


def mixed_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """alpha (Eq. 14 + Eq. 15 of DWRL) over the drawn thoughts + (1 - alpha) (-log P) of the last, which is empty."""
    drawn_logps, drawn = (jax.tree.map(lambda x: x[:, :, :-1], found) for found in (logps, thoughts))
    loss, metrics = dwrl.joint_loss(drawn_logps, drawn, hyper)
    nothing = dataclasses.replace(logps, answer=logps.answer[..., -1:], answer_mass=logps.answer_mass[..., -1:])
    empty, of_empty = bt_token.bradley_terry_loss(nothing, thoughts, bt_token.Hyper())
    shown = {f"empty_{name}": of_empty[name] for name in ("pair_accuracy", "pair_nll", "margin")}
    return hyper.alpha * loss + (1.0 - hyper.alpha) * empty, metrics | shown


def optimal_alpha(
    thought_error: Float[Array, ""], empty_error: Float[Array, ""], common_error: Float[Array, ""]
) -> Float[Array, ""]:
    """alpha* = (E - C) / (A + E - 2 C) from `thought_error` A, `empty_error` E and `common_error` C.

    The error is a parabola in alpha, so the nearer end is best where alpha* is not from 0 to 1. Not a number where
    both gradients are always the same.
    """
    return jnp.clip((empty_error - common_error) / (thought_error + empty_error - 2.0 * common_error), 0.0, 1.0)


def trace_alpha(thought_gradients: Float[Array, "R P"], empty_gradient: Float[Array, " P"]) -> Float[Array, ""]:
    """An estimate of alpha* for given pairs, from R >= 2 gradients with thoughts drawn anew for each (ours).

    Given the pairs g_e is no random number, so C = <b_t, b_e>; with b_t, of order 1/n, taken for zero this is
    alpha* = |b_e|^2 / (|b_e|^2 + tr Var g_t), both estimated without bias.
    """
    repeats = len(thought_gradients)
    mean = thought_gradients.mean(0)
    variance = ((thought_gradients - mean) ** 2).sum() / (repeats - 1)
    squared_bias = ((empty_gradient - mean) ** 2).sum() - variance / repeats
    return optimal_alpha(variance, jnp.maximum(squared_bias, 0.0), 0.0)


EMPTY = (
    Panel(
        LEARNING, "Accuracy without a thought", "%", {"train/empty_pair_accuracy": "empty thought"}, 100, {"chance": 50}
    ),
    Panel(LEARNING, "NLL without a thought", "nats", {"train/empty_pair_nll": "empty thought"}),
    Panel(RESPONSES, "Log-odds without a thought", "nats", {"train/empty_margin": "empty thought"}),
)

OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), empty_thought=True, panels=(*dwrl.OBJECTIVE.panels, *EMPTY)
)
