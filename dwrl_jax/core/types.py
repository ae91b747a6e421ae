"""What flows between the parts. Axes, always in this order:

B pairs, S = 2 sides (0 the chosen response y+, 1 the rejected y-), G thoughts per side,
L prefix tokens, T thought tokens. Arrays are right-padded and masked by lengths, never by token values.
"""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class PreferenceBatch:
    """Pairs, rendered up to the place where the thought begins."""

    prefix: Int[Array, "B S L"]
    prefix_len: Int[Array, "B S"]
    answer: Int[Array, "B S"]  # target token of the second turn: "good" for both sides in DWRL
    valid: Bool[Array, " B"]  # False on rows that only fill the batch up
    pair_id: Int[Array, " B"]  # index of the pair in its data set: part of every sampling key
    margin: Float[Array, " B"] | None = None  # how much better y+ is, as the data says; only where it is asked for


@flax.struct.dataclass
class Verdicts:
    """Answer tokens that were drawn after the thoughts, as the last token of what the policy writes."""

    token: Int[Array, "B S G"]
    old_logp: Float[Array, "B S G"]  # nats, under the policy that sampled
    right: Bool[Array, "B S G"]  # it is the first answer (good) on side 0, the second one on side 1; never for scores
    well_formed: Bool[Array, "B S G"]  # the thought ended itself, and the token is one of the two answers
    ref_logp: Float[Array, "B S G"] | None = None  # nats, under the starting model; only with a KL term
    place: Int[Array, "B S G"] | None = None  # of the token among the judge's answers, -1 where it is none of them


@flax.struct.dataclass
class ThoughtBatch:
    """A group of thoughts for every response."""

    thought: Int[Array, "B S G T"]
    thought_len: Int[Array, "B S G"]  # counts the end token where there is one
    old_logp: Float[Array, "B S G T"]  # nats, under the policy that sampled; zero past thought_len
    ref_logp: Float[Array, "B S G T"] | None = None  # nats, under the starting model; only with a KL term
    verdict: Verdicts | None = None  # only where verdicts are drawn


@flax.struct.dataclass
class Logps:
    """Log-probabilities in nats from one teacher-forced pass, float32."""

    thought: Float[Array, "B S G T"]  # zero past thought_len
    answer: Float[Array, "B S G"]  # log score: log pi(a | x, y, o), by the chosen read-out
    answer_mass: Float[Array, "B S G"]  # probability on the answer tokens together
    entropy: Float[Array, "B S G T"]  # of the next-token distribution; zero past thought_len
    verdict: Float[Array, "B S G"] | None = None  # of the drawn verdict over the full vocabulary


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes; the data position and all sampling keys follow from `step`."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
