"""The scalar Bradley-Terry reward model: a value head on the last token of (x, y), with no thought and no answer.

    r(x, y) = head . h(last token of the conversation),    P(y+ > y-) = sigmoid(r+ - r-)

The reward takes the place that log p has in other objectives. The head is initialised as in arXiv 2009.01325, from
N(0, 1 / (D + 1)), multiplied by `head_init`. Its learning rate is that of the other parameters, multiplied by
`optim.value_head_rate`. The values of both factors are (ours).
"""

import dataclasses
import functools

from jaxtyping import Array, Float

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.dwrl import log_preference_score, preference_metrics
from dwrl_jax.objectives.parts import panels
from dwrl_jax.objectives.parts.bradley_terry import BradleyTerry, pair_loss, uses_margins

HEAD_INIT = "multiplies 1 / sqrt(width + 1), the standard deviation of a fresh value head"


@dataclasses.dataclass(frozen=True)
class Hyper(BradleyTerry):
    centring: float = setting(0.0, "coefficient of (r+ + r-)^2, which holds rewards near zero", at_least=0)
    head_init: float = setting(1.0, HEAD_INIT, at_least=0)


def phases(hyper: Hyper):
    return {"bt": functools.partial(reward_loss, hyper=hyper)}


def reward_loss(logps: Logps, thoughts: ThoughtBatch, hyper: Hyper, margin: Float[Array, " B"] | None = None):
    """-log sigmoid(r+ - r-) + centring * (r+ + r-)^2, in nats.

    The likelihood does not determine the mean of r+ and r-. The second term (arXiv 2312.09244, Eq. 3) keeps it near
    zero. `parts/bradley_terry` gives the first term with a margin.
    """
    reward = log_preference_score(logps.answer)
    loss = pair_loss(reward[:, 0] - reward[:, 1], hyper, margin) + hyper.centring * reward.sum(1) ** 2
    return loss, reward_metrics(logps)


def reward_metrics(logps: Logps) -> dict[str, Float[Array, " B"]]:
    """`preference_metrics` without the metrics of answers and thoughts."""
    of_thoughts = ("answer_mass", "effective_thoughts")
    return {name: metric for name, metric in preference_metrics(logps).items() if name not in of_thoughts}


OBJECTIVE = Objective(
    Hyper,
    phases,
    judges=("reward",),
    thoughts="none",
    value_outputs=lambda hyper: 1,
    uses_margins=uses_margins,
    panels=panels.REWARDS,
)
