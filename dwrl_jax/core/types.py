"""The arrays that flow between the rooms. Their axes are always in this order:

B pairs, S = 2 sides (0 the chosen response y+, 1 the rejected y-), G thoughts per side,
L prefix tokens, T thought tokens. Arrays are right-padded and masked by lengths, never by token values.
"""

from typing import Any

import flax.struct
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class PreferenceBatch:
    """Tokens of pairs, up to the place where the thought begins."""

    prefix: Int[Array, "B S L"]
    prefix_len: Int[Array, "B S"]
    answer: Int[Array, "B S"]  # target token of the second turn: "good" for both sides in DWRL
    valid: Bool[Array, " B"]  # False for rows that only fill the batch
    pair_id: Int[Array, " B"]  # index of the pair in its data set; every sampling key depends on it
    margin: Float[Array, " B"] | None = None  # how much better y+ is, from the data; only if the objective uses it


@flax.struct.dataclass
class Verdicts:
    """Answer tokens that were drawn after the thoughts. Each is the last token that the policy writes."""

    token: Int[Array, "B S G"]
    old_logp: Float[Array, "B S G"]  # nats, under the policy that sampled
    right: Bool[Array, "B S G"]  # first answer (good) on side 0, second answer on side 1; never for scores
    well_formed: Bool[Array, "B S G"]  # the thought has its end token, and the token is one of the answers
    ref_logp: Float[Array, "B S G"] | None = None  # nats, under the starting model; only with a KL term
    place: Int[Array, "B S G"] | None = None  # index of the token in the judge's answers, or -1


@flax.struct.dataclass
class ThoughtBatch:
    """A group of G thoughts about every response."""

    thought: Int[Array, "B S G T"]
    thought_len: Int[Array, "B S G"]  # number of tokens, including the end token if there is one
    old_logp: Float[Array, "B S G T"]  # nats, under the policy that sampled; zero past thought_len
    ref_logp: Float[Array, "B S G T"] | None = None  # nats, under the starting model; only with a KL term
    verdict: Verdicts | None = None  # only where verdicts are drawn


@flax.struct.dataclass
class Logps:
    """Log-probabilities in nats from one teacher-forced pass, float32."""

    thought: Float[Array, "B S G T"]  # zero past thought_len
    answer: Float[Array, "B S G"]  # log score: log pi(a | x, y, o) in the chosen read-out
    answer_mass: Float[Array, "B S G"]  # total probability of the answer tokens
    entropy: Float[Array, "B S G T"]  # entropy of the next-token distribution; zero past thought_len
    verdict: Float[Array, "B S G"] | None = None  # log-probability of the drawn verdict, full vocabulary


@flax.struct.dataclass
class TrainState:
    """Everything that a step changes. The data position and all sampling keys follow from `step`."""

    step: Int[Array, ""]
    params: Any
    opt_state: Any
