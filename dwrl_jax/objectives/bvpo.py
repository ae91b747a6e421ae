"""BVPO on DWRL: a mixture of the gradient with thoughts and the gradient with the empty thought (arXiv 2510.05095).

    g = alpha g_t + (1 - alpha) g_e

g_t is noisy because its thoughts are drawn. g_e does not have this noise, but it is biased, because it is the gradient
of another objective. The mean squared distance of the mixture from the true gradient g* is

    E|g - g*|^2 = alpha^2 A + 2 alpha (1 - alpha) C + (1 - alpha)^2 E
    A = E|g_t - g*|^2 = tr Var g_t + |b_t|^2,   E = E|g_e - g*|^2,   C = E<g_t - g*, g_e - g*>

It is smallest at alpha* = (E - C) / (A + E - 2 C).

The paper does this for DPO, with a policy's answers and its traces. We know the paper's mixture, and that it has a
closed form for alpha*, but we do not know the paper's text. Choices that are (ours):

1. g_t is DWRL's joint gradient over n thoughts, and g_e is the gradient of `bt_token`, which asks for the answer
   without a thought;
2. the derivation of alpha* above is ours, and so is `trace_alpha`, which leaves out the biases that cannot be known;
3. alpha is constant during a run, because estimating A, C and E takes several gradients of the same pairs;
4. the empty thought is one more branch at the end of the group, so the prefix is computed only once.
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
    """`alpha` is the weight of the gradient with thoughts. The other fields belong to that gradient, as in `dwrl`."""

    alpha: float = setting(0.5, "weight of the gradient with thoughts, between 0 and 1", at_least=0, at_most=1)
    baseline: Literal["none", "mean", "leave_one_out"] = setting("mean", dwrl.BASELINE)


def phases(hyper: Hyper):
    """A single update by the mixed gradient."""
    return {"mixed": functools.partial(mixed_loss, hyper=hyper)}


def mixed_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper):
    """alpha (Eq. 14 + Eq. 15 of DWRL) + (1 - alpha) (-log P), in nats.

    The first term is over the drawn thoughts, the second over the last thought, which is empty.
    """
    drawn_logps, drawn = (jax.tree.map(lambda x: x[:, :, :-1], tree) for tree in (logps, thoughts))
    loss, metrics = dwrl.joint_loss(drawn_logps, drawn, hyper)
    nothing = dataclasses.replace(logps, answer=logps.answer[..., -1:], answer_mass=logps.answer_mass[..., -1:])
    empty, of_empty = bt_token.bradley_terry_loss(nothing, thoughts, bt_token.Hyper())
    shown = {f"empty_{name}": of_empty[name] for name in ("pair_accuracy", "pair_nll", "log_odds")}
    return hyper.alpha * loss + (1.0 - hyper.alpha) * empty, metrics | shown


def optimal_alpha(
    thought_error: Float[Array, ""], empty_error: Float[Array, ""], common_error: Float[Array, ""]
) -> Float[Array, ""]:
    """alpha* = (E - C) / (A + E - 2 C) from `thought_error` A, `empty_error` E and `common_error` C.

    The error is a parabola in alpha. So if alpha* is outside [0, 1], the nearer end of the interval is best. The result
    is NaN if both gradients are always equal.
    """
    return jnp.clip((empty_error - common_error) / (thought_error + empty_error - 2.0 * common_error), 0.0, 1.0)


def trace_alpha(thought_gradients: Float[Array, "R P"], empty_gradient: Float[Array, " P"]) -> Float[Array, ""]:
    """An estimate of alpha* = |b_e|^2 / (|b_e|^2 + tr Var g_t) for given pairs (ours).

    `thought_gradients` are R >= 2 gradients with P components, each from newly drawn thoughts. For given pairs g_e is
    not random, so C = <b_t, b_e>. The bias b_t is of order 1/n and is taken to be zero. The estimates of |b_e|^2 and
    of tr Var g_t are unbiased.
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
    Panel(RESPONSES, "Log-odds without a thought", "nats", {"train/empty_log_odds": "empty thought"}),
)

OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), empty_thought=True, panels=(*dwrl.OBJECTIVE.panels, *EMPTY)
)
