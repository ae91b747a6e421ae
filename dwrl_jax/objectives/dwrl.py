"""DWRL: dual-weighted reinforcement learning (arXiv 2510.15242). Each equation is a function.

The preference score p of a response is the mean over thoughts of the probability of the good answer, and
P(y+ > y-) = p+ / (p+ + p-). In its gradient each thought has two weights: an instance-wise misalignment weight
multiplies a group-wise, self-normalised weight. Both weights are constants to the gradient. Choices are marked (ours)
if the paper does not make them or if they could not be read there:

1. the baseline b in the thought step: "none" is the paper's, "mean" and "leave_one_out" are (ours);
2. `updates="joint"`, a single backward pass for both terms (ours);
3. the dual clip of negative advantages (from arXiv 1912.09729) and the KL term to the starting model (ours);
4. margins of the data (ours): the instance-wise weight becomes that of a likelihood with margins (parts/bradley_terry);
5. a common optimizer state for Eq. 14 and Eq. 15 (ours): Adam's moments average both gradients, and the number of
   updates rises by two in each step. `optim.moments=separate` gives each equation a state of its own;
6. `score_rate`, another learning rate for Eq. 14 than for Eq. 15, and `centring`, a term in Eq. 14 that holds the
   level of log p (ours). Both are off by default: their values 1 and 0 are the paper's;
7. `importance`, weights in Eq. 14 for thoughts that another density sampled (ours), off by default. Eq. 15 needs none:
   its ratio is to the density that sampled.

Everything is float32 and in log space.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.bradley_terry import BradleyTerry, pair_weight, uses_margins
from dwrl_jax.objectives.parts.policy import Policy, log_importance, policy_loss, sampler_gap

BASELINE = 'b in w_i - b: "none" (the paper\'s), "mean" or "leave_one_out"'
SIGN = (1.0, -1.0)  # signs of the chosen and the rejected side


@dataclasses.dataclass(frozen=True)
class Updates(Policy):
    """Hyper-parameters of the clipped surrogate, and of the way in which a step uses both equations."""

    updates: Literal["alternating", "joint"] = setting(
        "alternating", 'Eq. 14 and Eq. 15 in two updates ("alternating", the paper\'s) or in a single one ("joint")'
    )
    baseline: Literal["none", "mean", "leave_one_out"] = setting("mean", BASELINE)
    score_rate: float = setting(
        1.0, "multiplies the learning rate of Eq. 14 where Eq. 14 and Eq. 15 are two updates", at_least=0
    )
    centring: float = setting(0.0, "coefficient of the term that holds log p near `centre`; 0: off", at_least=0)
    centre: float = setting(-3.0, "level near which `centring` holds the mean of log p+ and log p-, in nats", at_most=0)
    importance: float = setting(
        0.0,
        "0: off. Otherwise Eq. 14 weights each thought by pi / pi_sampler, at most this number: for thoughts sampled "
        "in few bits (sampler.cache, sampler.weights)",
        at_least=0,
    )


@dataclasses.dataclass(frozen=True)
class Hyper(BradleyTerry, Updates):
    """Hyper-parameters of DWRL: those of `Updates`, and the use of margins."""


def log_preference_score(answer: Float[Array, "B S G"]) -> Float[Array, "B S"]:
    """log p = logsumexp_i log pi(a | x, y, o_i) - log n, in nats: it estimates log E_o[pi(a | x, y, o)] by sampling."""
    return jax.nn.logsumexp(answer, -1) - jnp.log(answer.shape[-1])


def pair_nll(log_score: Float[Array, "B S"]) -> Float[Array, " B"]:
    """-log P(y+ > y- | x) = -log sigmoid(log p+ - log p-), in nats."""
    return -jax.nn.log_sigmoid(log_score[:, 0] - log_score[:, 1])


def misalignment_weight(log_score: Float[Array, "B S"]) -> Float[Array, " B"]:
    """w_mis = p- / (p+ + p-), the probability that the model gives to the wrong order of a pair. No gradient."""
    return stop_gradient(jax.nn.sigmoid(log_score[:, 1] - log_score[:, 0]))


def thought_weight(answer: Float[Array, "B S G"]) -> Float[Array, "B S G"]:
    """w_i = pi(a | x, y, o_i) / sum_j pi(a | x, y, o_j), the group-wise preference score. No gradient."""
    return stop_gradient(jax.nn.softmax(answer, -1))


def centred_weight(weight: Float[Array, "B S G"], baseline: str) -> Float[Array, "B S G"]:
    """w_i - b. The score function has mean zero, so b = 1/n keeps the expectation and reduces the variance.

    "leave_one_out" is n/(n-1) (w_i - 1/n). It also removes most of the shrinkage (n-1)/n of "mean" (ours). Both
    are zero for a single thought.
    """
    n = weight.shape[-1]
    if baseline == "none":
        return weight
    centred = weight - 1.0 / n
    return centred * (n / max(n - 1, 1)) if baseline == "leave_one_out" else centred


def dual_weight(
    answer: Float[Array, "B S G"], baseline: str = "none", instance_weight=misalignment_weight
) -> Float[Array, "B S G"]:
    """A_i = +- w_mis (w_i - b), the advantage of every thought: + on side 0 (chosen), - on side 1 (rejected)."""
    w_mis = instance_weight(log_preference_score(answer))
    signs = jnp.asarray(SIGN)[:, None]
    return signs * w_mis[:, None, None] * centred_weight(thought_weight(answer), baseline)


def score_loss(logps: Logps, thoughts: ThoughtBatch, instance_weight=misalignment_weight, importance: float = 0.0):
    """Eq. 14: - w_mis (sum_i w_i+ log pi(a | o_i+) - sum_i w_i- log pi(a | o_i-)), with fixed thoughts.

    With `importance`, p is the mean of rho_i pi(a | o_i), and w_i its part: rho_i is that of `log_importance`.
    """
    answer = logps.answer + (log_importance(logps, thoughts, importance) if importance else 0.0)
    loss = -(dual_weight(answer, instance_weight=instance_weight) * logps.answer).sum((1, 2))
    return loss, preference_metrics(logps) | sampler_gap(logps, thoughts)


def level_loss(log_score: Float[Array, "B S"], hyper: Updates) -> Float[Array, " B"]:
    """centring * (log p+ + log p- - 2 centre)^2 (ours, after arXiv 2312.09244, Eq. 3), in nats.

    The likelihood does not determine a common level of log p+ and log p-. If both approach 0, every w_i approaches 1/n
    and 1 - p approaches 0, so neither step has a gradient. The term has a bias: it draws a pair of two good responses
    and a pair of two bad ones to the same level, although a response of the one may stand beside one of the other.
    """
    return hyper.centring * (log_score.sum(1) - 2.0 * hyper.centre) ** 2


def thought_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Updates, instance_weight=misalignment_weight):
    """Eq. 15: the PPO-clipped surrogate of +- w_mis (w_i - b) log pi(o_i), against the policy that sampled."""
    return policy_loss(logps, thoughts, dual_weight(logps.answer, hyper.baseline, instance_weight), hyper)


def joint_loss(
    logps: Logps, thoughts: ThoughtBatch, hyper: Updates, instance_weight=misalignment_weight, importance: float = 0.0
):
    """Eq. 14 + Eq. 15 from a single forward pass (ours). It costs half as much as the alternating updates."""
    score, metrics = score_loss(logps, thoughts, instance_weight, importance)
    thought, more = thought_loss(logps, thoughts, hyper, instance_weight)
    return score + thought, metrics | more


def with_margin(loss, hyper: BradleyTerry, logps: Logps, thoughts: ThoughtBatch, margin: Float[Array, " B"]):
    """`loss` with the weight -dl/dd of a likelihood with margins in the place of w_mis (ours)."""

    def instance_weight(log_score):
        return pair_weight(log_score[:, 0] - log_score[:, 1], hyper, margin)

    return loss(logps, thoughts, instance_weight=instance_weight)


def phases(hyper: Hyper):
    """{"score": Eq. 14, "thought": Eq. 15}. The second update starts from the parameters after the first."""
    losses = updates(hyper)
    if hyper.bradley_terry == "regular":
        return losses
    return {name: functools.partial(with_margin, loss, hyper) for name, loss in losses.items()}


def centred(loss, hyper: Updates, logps: Logps, thoughts: ThoughtBatch, **asked):
    """`loss` and the term of the level. Only answers have its gradient: thoughts are not chosen for the level."""
    losses, metrics = loss(logps, thoughts, **asked)
    return losses + level_loss(log_preference_score(logps.answer), hyper), metrics


def updates(hyper: Updates, instance_weight=misalignment_weight):
    """The losses of both updates, or the joint loss. `instance_weight` maps log p [B S] to the weights of pairs [B]."""
    sampled = {"instance_weight": instance_weight, "importance": hyper.importance}
    score = functools.partial(score_loss, **sampled)
    thought = functools.partial(thought_loss, hyper=hyper, instance_weight=instance_weight)
    joint = functools.partial(joint_loss, hyper=hyper, **sampled)
    losses = {"joint": joint} if hyper.updates == "joint" else {"score": score, "thought": thought}
    first = next(iter(losses))
    return losses | {first: functools.partial(centred, losses[first], hyper)} if hyper.centring else losses


def preference_metrics(logps: Logps):
    """Metrics of each pair [B]: accuracy, scores, and the quantities behind the two weights."""
    log_score = log_preference_score(logps.answer)
    log_odds = log_score[:, 0] - log_score[:, 1]
    return {
        "pair_accuracy": jnp.where(log_odds == 0, 0.5, log_odds > 0),
        "ties": (log_odds == 0).astype(jnp.float32),
        "pair_nll": pair_nll(log_score),
        "log_odds": log_odds,
        "log_preference_score_chosen": log_score[:, 0],
        "log_preference_score_rejected": log_score[:, 1],
        "misalignment_weight": misalignment_weight(log_score),
        "effective_thoughts": (1.0 / (thought_weight(logps.answer) ** 2).sum(-1)).mean(1),
        "answer_mass": logps.answer_mass.mean((1, 2)),
    }


OBJECTIVE = Objective(
    Hyper, phases, judges=("verdict", "score"), uses_margins=uses_margins, panels=(*panels.PREFERENCE, *panels.POLICY)
)
