"""The judge: a language model that is asked about a response, and the ways to read its score."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dwrl_jax.core.types import Logps, PreferenceBatch, ThoughtBatch
from dwrl_jax.generation.forced import branch_size, teacher_forced
from dwrl_jax.generation.packing import Packing
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.generation.writer import Writer
from dwrl_jax.models.transformer import Decoder, logits, output_table
from dwrl_jax.objectives import VALUE_KINDS


@dataclasses.dataclass(frozen=True)
class Judge:
    """A decoder, the fixed tokens of the dialogue, and the way to read a score.

    `kind` is one of `objectives.KINDS`. `question` are the tokens from the end token of a thought to the place of the
    answer. `answers` are the tokens for good and bad, or for the first and the second response, or for K scores, the
    lowest first. The log score of a response is for each kind

    "verdict", "label"  log pi(answer), over the full vocabulary (`readout` "vocab") or over both answers ("choices");
    "score"             the log of the mean score, with K scores spread evenly between 0 and 1 (ours);
    "reward"            the value head's output at the last token of the prefix, without a second turn.

    If an objective reads scores in its own way, `value_scores` computes the scores of a pair from a value head's
    outputs or from the log-probabilities of the scores. `temperature` is that of the thoughts' density, and `stops` are
    the other end tokens by which a thought may stop.
    """

    model: Decoder
    question: tuple[int, ...]
    answers: tuple[int, ...]
    pad: int
    kind: str = "verdict"
    temperature: float = 1.0
    readout: str = "vocab"
    chunk: int = 1024
    value_scores: Callable[[Float[Array, "B 2 *G K"]], Float[Array, "B 2 *G"]] | None = None
    stops: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.question[0]

    @property
    def has_value_head(self) -> bool:
        return self.kind in VALUE_KINDS

    @property
    def writer(self) -> Writer:
        return Writer(self.model, self.end, self.pad, self.temperature, self.chunk, self.stops)


def question_kind(kind: str) -> str:
    """The kind of question for a kind of judge. It is "bare" for a value head, which is asked nothing."""
    return "bare" if kind in VALUE_KINDS else kind


def mean_score(log_probability: Float[Array, "*rows K"]) -> Float[Array, "*rows"]:
    """log sum_k p(k) u_k with u_k = (k + 1/2) / K (ours), from log p(k) of K scores, the lowest first.

    `log_probability` need not be normalised over the scores.
    """
    count = log_probability.shape[-1]
    value = (np.arange(count) + 0.5) / count
    return jax.nn.logsumexp(log_probability, -1, b=value) - jax.nn.logsumexp(log_probability, -1)


def answer_logps(
    judge: Judge, params, hidden: Float[Array, "*rows D"], answer: Int[Array, "*rows"], verdict=None
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"], Float[Array, "*rows"] | None]:
    """The log score of the target answer in the judge's read-out, the total probability of all answers, and the
    log-probability of a drawn verdict, if there is one. Log-probabilities are in nats.

    For a judge with `value_scores` the rows are [2 B, ...], with the two sides of each pair next to each other.
    """
    targets = [answer, *(jnp.full_like(answer, a) for a in judge.answers)]
    targets = jnp.stack(targets if verdict is None else [*targets, verdict], -1)
    logp, _ = token_logps(hidden, output_table(params), targets, chunk=judge.chunk, cap=judge.model.config.logit_cap)
    each = range(1, 1 + len(judge.answers))
    log_mass = functools.reduce(jnp.logaddexp, (logp[..., i] for i in each))
    if judge.kind != "score":
        score = logp[..., 0] - log_mass if judge.readout == "choices" else logp[..., 0]
    elif judge.value_scores is None:
        score = mean_score(logp[..., 1 : each.stop])
    else:
        by_pair = logp[..., 1 : each.stop].reshape(-1, 2, *logp.shape[1:-1], len(each))
        score = judge.value_scores(by_pair).reshape(log_mass.shape)
    return score, jnp.exp(log_mass), None if verdict is None else logp[..., -1]


def branch_length(judge: Judge, max_thought: int) -> int:
    """The largest number of tokens in a branch: first token, thought, question. A value head needs no branch: 0."""
    return 0 if judge.has_value_head else branch_size(max_thought, len(judge.question))


def value_outputs(judge: Judge, params, prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Float[Array, "P K"]:
    """value_head . h(last token of the prefix), in float32."""
    tokens = prefix[:, None]
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[-1]), tokens.shape)
    hidden, _ = judge.model.apply(params, tokens, positions)
    last = jnp.take_along_axis(hidden[:, 0], prefix_len[:, None, None] - 1, 1)[:, 0]
    return logits(last, params["params"]["value_head"])


def rewards(judge: Judge, params, batch: PreferenceBatch) -> Float[Array, "B S"]:
    """The scores of both sides from a value head."""
    rows = batch.prefix.reshape(-1, batch.prefix.shape[-1]), batch.prefix_len.reshape(-1)
    values = value_outputs(judge, params, *rows).reshape(*batch.answer.shape, -1)
    return values[..., 0] if judge.value_scores is None else judge.value_scores(values)


def logps(
    judge: Judge, params, batch: PreferenceBatch, thoughts: ThoughtBatch, packing: Packing | None = None
) -> Logps:
    """log pi(o | x, y) of each thought token and log pi(a | x, y, o) of each answer, in nats, in a single pass.

    The scores of a value head take the place of log scores, because P(y+ > y-) = sigmoid(r+ - r-) has the same form as
    sigmoid(log p+ - log p-).
    """
    B, S, G, T = thoughts.thought.shape
    if judge.has_value_head:
        zeros = jnp.zeros((B, S, G, T))
        return Logps(zeros, rewards(judge, params, batch)[..., None], jnp.ones((B, S, G)), zeros)
    rows = B * S
    forced = teacher_forced(
        judge.writer,
        params,
        batch.prefix.reshape(rows, -1),
        batch.prefix_len.reshape(rows),
        thoughts.thought.reshape(rows, G, T),
        thoughts.thought_len.reshape(rows, G),
        judge.question,
        packing,
    )
    answer = jnp.broadcast_to(batch.answer.reshape(rows, 1), (rows, G))
    drawn = None if thoughts.verdict is None else thoughts.verdict.token.reshape(rows, G)
    score, mass, verdict = answer_logps(judge, params, forced.last, answer, drawn)
    return Logps(
        thought=forced.logp.reshape(B, S, G, T),
        answer=score.reshape(B, S, G),
        answer_mass=mass.reshape(B, S, G),
        entropy=forced.entropy.reshape(B, S, G, T),
        verdict=None if verdict is None else verdict.reshape(B, S, G),
    )
