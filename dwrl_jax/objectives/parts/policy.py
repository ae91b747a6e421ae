"""The clipped surrogate, its KL term and its metrics, for objectives that learn from the policy's own thoughts.

A policy writes a thought. If verdicts are drawn, it also writes the answer token after the thought. Everything is
float32 and in log space.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch

LARGEST_LOG_RATIO = 80.0  # exp(80) is finite in float32, also multiplied by an advantage; exp(89) is not


@dataclasses.dataclass(frozen=True)
class Policy:
    """Hyper-parameters of the clipped surrogate."""

    clip: tuple[float, float] = setting(
        (0.2, 0.2), "distances below and above 1 at which the ratio is clipped", count=2, at_least=0
    )
    dual_clip: float = setting(3.0, "largest loss of a negative advantage, in units of its size", above=1)
    token_aggregation: Literal["sum", "mean"] = setting("sum", '"sum" (exact) or "mean" over a thought\'s tokens')
    kl: float = setting(0.0, "coefficient of the KL term to the starting model, in nats; 0: off", at_least=0)


class Written(NamedTuple):
    """Log-probabilities, in nats, of all tokens that the policy wrote. `mask` is True for tokens that exist.

    `logp` is under the current policy, `old_logp` under the policy that sampled, and `ref_logp` under the starting
    model (None without a KL term).
    """

    logp: Float[Array, "B S G T"]
    old_logp: Float[Array, "B S G T"]
    ref_logp: Float[Array, "B S G T"] | None
    mask: Bool[Array, "B S G T"]


def written(logps: Logps, thoughts: ThoughtBatch) -> Written:
    """The tokens of the thoughts. If verdicts were drawn, each thought has its verdict as one more token."""
    mask = jnp.arange(thoughts.thought.shape[-1]) < thoughts.thought_len[..., None]
    tokens = Written(logps.thought, thoughts.old_logp, thoughts.ref_logp, mask)
    verdict = thoughts.verdict
    if verdict is None:
        return tokens
    last = Written(logps.verdict, verdict.old_logp, verdict.ref_logp, jnp.ones(mask.shape[:-1], bool))
    return Written(*(None if x is None else jnp.concatenate([x, y[..., None]], -1) for x, y in zip(tokens, last)))


def policy_loss(logps: Logps, thoughts: ThoughtBatch, advantage: Float[Array, "B S G"], hyper: Policy):
    """-sum_i surrogate(A_i) + kl * KL. Returns the loss [B] and metrics [B].

    The surrogate is summed over sides and thoughts. KL, in nats, is the mean over a group, summed over sides.
    `advantage` is a constant to the gradient.
    """
    tokens = written(logps, thoughts)
    ratio = probability_ratio(tokens.logp, tokens.old_logp)
    surrogate = clipped_surrogate(ratio, advantage[..., None], hyper.clip, hyper.dual_clip)
    loss = -_aggregate(surrogate, tokens, hyper).sum((1, 2))
    metrics = _policy_metrics(logps, thoughts, tokens, ratio, hyper)
    if hyper.kl:
        kl = _aggregate(token_kl(tokens.logp, tokens.ref_logp), tokens, hyper)
        loss = loss + hyper.kl * kl.mean(2).sum(1)
        metrics["kl"] = kl.mean((1, 2))
    return loss, metrics


def probability_ratio(logp: Float[Array, "B S G T"], old_logp: Float[Array, "B S G T"]) -> Float[Array, "B S G T"]:
    """r = exp(logp - old_logp), but at most exp(80), so that it is finite.

    For an infinite r the gradient would be 0 * inf if the surrogate does not select r.
    """
    return jnp.exp(jnp.minimum(logp - old_logp, LARGEST_LOG_RATIO))


def clipped_surrogate(
    ratio: Float[Array, "B S G T"], advantage: Float[Array, "B S G 1"], clip: tuple[float, float], dual_clip: float
) -> Float[Array, "B S G T"]:
    """PPO's min(r A, clip(r) A), and for A < 0 at least `dual_clip` A, so that no ratio makes the loss explode.

    r is clipped to [1 - clip[0], 1 + clip[1]]. The bound `dual_clip` A is from arXiv 1912.09729.
    """
    clipped = jnp.clip(ratio, 1.0 - clip[0], 1.0 + clip[1])
    pessimistic = jnp.minimum(ratio * advantage, clipped * advantage)
    return jnp.where(advantage < 0, jnp.maximum(pessimistic, dual_clip * advantage), pessimistic)


def token_kl(logp: Float[Array, "B S G T"], ref_logp: Float[Array, "B S G T"]) -> Float[Array, "B S G T"]:
    """exp(d) - d - 1 with d = ref_logp - logp, in nats: J. Schulman's estimator k3 of KL(pi || ref).

    It is unbiased and never negative.
    """
    difference = ref_logp - logp
    return jnp.expm1(difference) - difference


def log_importance(logps: Logps, thoughts: ThoughtBatch, largest: float) -> Float[Array, "B S G"]:
    """log of rho_i = pi(o_i) / pi_sampler(o_i), at most `largest`, over the mean of rho in the group. No gradient.

    So weighted, thoughts that another density sampled estimate means under the one that learns: self-normalised
    importance sampling, truncated (E. Ionides, 2008) so that no thought outweighs its group.
    """
    written = jnp.arange(thoughts.thought.shape[-1]) < thoughts.thought_len[..., None]
    log_ratio = jnp.where(written, logps.thought - thoughts.old_logp, 0.0).sum(-1)
    log_ratio = stop_gradient(jnp.minimum(log_ratio, math.log(largest)))
    return log_ratio - jax.nn.logsumexp(log_ratio, -1, keepdims=True) + math.log(log_ratio.shape[-1])


def sampler_gap(logps: Logps, thoughts: ThoughtBatch):
    """Metrics of each pair [B]: |log pi_trainer - log pi_sampler| of the thoughts' tokens, in nats: mean and largest.

    Both are under the same parameters. So the difference should be no more than rounding, if the sampler computes in
    the trainer's types.
    """
    gap = jnp.abs(logps.thought - thoughts.old_logp)
    return {
        "logp_gap_mean": gap.sum((1, 2, 3)) / thoughts.thought_len.sum((1, 2)),
        "logp_gap_max": gap.max((1, 2, 3)),
    }


def _aggregate(per_token, tokens: Written, hyper: Policy):
    """The sum over tokens (the exact gradient), or the mean (long thoughts then have no larger weight)."""
    total = jnp.where(tokens.mask, per_token, 0.0).sum(-1)
    return total / tokens.mask.sum(-1) if hyper.token_aggregation == "mean" else total


def _policy_metrics(logps: Logps, thoughts: ThoughtBatch, tokens: Written, ratio, hyper: Policy):
    """Metrics of each pair [B]: length and entropy of thoughts, and the distance from the policy that sampled."""
    outside = (ratio < 1.0 - hyper.clip[0]) | (ratio > 1.0 + hyper.clip[1])
    return {
        "thought_length": thoughts.thought_len.mean((1, 2)),
        "entropy": logps.entropy.sum((1, 2, 3)) / thoughts.thought_len.sum((1, 2)),
        "ratio_max": ratio.max((1, 2, 3)),
        "clip_share": (outside & tokens.mask).sum((1, 2, 3)) / tokens.mask.sum((1, 2, 3)),
    }
