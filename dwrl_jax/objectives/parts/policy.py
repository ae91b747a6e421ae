"""What the objectives that learn from their own thoughts share: the clipped surrogate, its KL term, its metrics.

What a policy writes is a thought and, where verdicts are drawn, the answer token behind it: one more token.
Everything is float32 and in log space.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch

LARGEST_LOG_RATIO = 80.0  # exp of it, times an advantage, is a finite float32; exp(89) is none


@dataclasses.dataclass(frozen=True)
class Policy:
    """Hyper-parameters of the clipped surrogate."""

    clip: tuple[float, float] = setting(
        (0.2, 0.2), "distances below and above 1 at which the ratio is clipped", count=2, at_least=0
    )
    dual_clip: float = setting(3.0, "bound of the loss of negative advantages, in advantages", above=1)
    token_aggregation: Literal["sum", "mean"] = setting("sum", '"sum" (exact) or "mean" over a thought\'s tokens')
    kl: float = setting(0.0, "coefficient of the KL term to the starting model, in nats; 0: off", at_least=0)


class Written(NamedTuple):
    """Log-probabilities in nats of all that the policy wrote: under it, under the one that sampled, under the
    starting model (None without a KL term); `mask` says which tokens there are."""

    logp: Float[Array, "B S G T"]
    old_logp: Float[Array, "B S G T"]
    ref_logp: Float[Array, "B S G T"] | None
    mask: Bool[Array, "B S G T"]


def written(logps: Logps, thoughts: ThoughtBatch) -> Written:
    """The thoughts' tokens, each with its verdict behind it where verdicts were drawn."""
    mask = jnp.arange(thoughts.thought.shape[-1]) < thoughts.thought_len[..., None]
    found = Written(logps.thought, thoughts.old_logp, thoughts.ref_logp, mask)
    verdict = thoughts.verdict
    if verdict is None:
        return found
    last = Written(logps.verdict, verdict.old_logp, verdict.ref_logp, jnp.ones(mask.shape[:-1], bool))
    return Written(*(None if x is None else jnp.concatenate([x, one[..., None]], -1) for x, one in zip(found, last)))


def policy_loss(logps: Logps, thoughts: ThoughtBatch, advantage: Float[Array, "B S G"], hyper: Policy):
    """-sum_i surrogate(A_i) over sides and thoughts, plus the KL term: the mean over a group, summed over sides.

    Returns the loss [B] and metrics [B]. `advantage` is a constant to the gradient.
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
    """r = exp(logp - old_logp), at most exp(80): always finite.

    An infinite r would turn the gradient into 0 * inf where the surrogate does not select it.
    """
    return jnp.exp(jnp.minimum(logp - old_logp, LARGEST_LOG_RATIO))


def clipped_surrogate(
    ratio: Float[Array, "B S G T"], advantage: Float[Array, "B S G 1"], clip: tuple[float, float], dual_clip: float
) -> Float[Array, "B S G T"]:
    """PPO's min(r A, clip(r) A), for A < 0 not below `dual_clip` A: one token's ratio cannot make the loss explode."""
    clipped = jnp.clip(ratio, 1.0 - clip[0], 1.0 + clip[1])
    pessimistic = jnp.minimum(ratio * advantage, clipped * advantage)
    return jnp.where(advantage < 0, jnp.maximum(pessimistic, dual_clip * advantage), pessimistic)


def token_kl(logp: Float[Array, "B S G T"], ref_logp: Float[Array, "B S G T"]) -> Float[Array, "B S G T"]:
    """exp(d) - d - 1 with d = ref - logp: unbiased for KL(pi || ref) and never negative (J. Schulman's k3)."""
    difference = ref_logp - logp
    return jnp.expm1(difference) - difference


def sampler_gap(logps: Logps, thoughts: ThoughtBatch):
    """Per pair: |log pi(o)| of trainer less sampler by token, under the same parameters; it should be rounding."""
    gap = jnp.abs(logps.thought - thoughts.old_logp)
    return {
        "logp_gap_mean": gap.sum((1, 2, 3)) / thoughts.thought_len.sum((1, 2)),
        "logp_gap_max": gap.max((1, 2, 3)),
    }


def _aggregate(per_token, tokens: Written, hyper: Policy):
    """Sum over what was written (the exact gradient) or the mean (long thoughts weigh no more)."""
    total = jnp.where(tokens.mask, per_token, 0.0).sum(-1)
    return total / tokens.mask.sum(-1) if hyper.token_aggregation == "mean" else total


def _policy_metrics(logps: Logps, thoughts: ThoughtBatch, tokens: Written, ratio, hyper: Policy):
    """Per pair: how far the policy has moved from the one that sampled, and how varied it still is."""
    outside = (ratio < 1.0 - hyper.clip[0]) | (ratio > 1.0 + hyper.clip[1])
    return {
        "thought_length": thoughts.thought_len.mean((1, 2)),
        "entropy": logps.entropy.sum((1, 2, 3)) / thoughts.thought_len.sum((1, 2)),
        "ratio_max": ratio.max((1, 2, 3)),
        "clip_share": (outside & tokens.mask).sum((1, 2, 3)) / tokens.mask.sum((1, 2, 3)),
    }
