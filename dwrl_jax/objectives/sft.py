"""Supervised warm start: maximum likelihood of written thoughts and of the answers after them."""

import dataclasses

from dwrl_jax.core.settings import setting
from dwrl_jax.core.types import Logps, ThoughtBatch
from dwrl_jax.objectives import Objective
from dwrl_jax.objectives.parts import panels


@dataclasses.dataclass(frozen=True)
class Hyper:
    answer_weight: float = setting(
        1.0, "multiplies the answer's log-likelihood, which is that of a single token", at_least=0
    )


def phases(hyper: Hyper):
    """A single update by -log pi(o | x, y) - answer_weight * log pi(a | x, y, o), in nats, summed over both sides."""

    def supervised_loss(logps: Logps, thoughts: ThoughtBatch):
        thought = -logps.thought.sum((1, 2, 3))
        answer = -logps.answer.sum((1, 2))
        tokens = thoughts.thought_len.sum((1, 2))
        metrics = {
            "thought_nll": thought / tokens,
            "answer_nll": answer / logps.answer[0].size,
            "answer_mass": logps.answer_mass.mean((1, 2)),
        }
        return thought + hyper.answer_weight * answer, metrics

    return {"supervised": supervised_loss}


WRITTEN = panels.Panel(
    panels.LEARNING,
    "NLL of written texts",
    "nats per token",
    {"train/thought_nll": "thoughts", "train/answer_nll": "answers"},
)

OBJECTIVE = Objective(Hyper, phases, thoughts="written", panels=(WRITTEN, panels.ANSWER_MASS))
