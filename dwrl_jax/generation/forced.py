"""The generative preference model: one teacher-forced pass over shared prefixes gives every log-probability.

The last prefix token opens each branch, so that hidden state t of a branch predicts thought token t and the
prefix pass needs no head. A branch reads

    last prefix token, thought without its end, END, question of the second turn

where END is sampled by a thought that ended itself and written by us behind one that hit the length limit;
only in the first case does it count in the thought's density.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dwrl_jax.core.types import Logps, PreferenceBatch, ThoughtBatch
from dwrl_jax.generation.packing import Packing
from dwrl_jax.generation.token_logps import token_logps
from dwrl_jax.models.transformer import Decoder, Prefix, logits, output_table


def reward(values: Float[Array, "B S 1"]) -> Float[Array, "B S"]:
    """r(x, y), the one output of a reward model."""
    return values[..., 0]


@dataclasses.dataclass(frozen=True)
class Judge:
    """What turns a decoder into a judge: the fixed tokens of the dialogue and the way a score is read.

    `question` runs from the end token that closes a thought to the place of the answer. `answers` are the
    tokens for good and bad, or for scores. `readout` "vocab" takes an answer's probability over the full vocabulary,
    "choices" renormalises over the two answers, and "value" reads a value head at the end of the prefix, without a
    second turn: `value_scores` makes a score of each side from its outputs. "ordinal" does so from the
    log-probabilities of the answers. `temperature` belongs to the thoughts' density.
    """

    model: Decoder
    question: tuple[int, ...]
    answers: tuple[int, ...]
    pad: int
    temperature: float = 1.0
    readout: str = "vocab"
    chunk: int = 1024
    value_scores: Callable[[Float[Array, "B S *G K"]], Float[Array, "B S *G"]] = reward

    @property
    def end(self) -> int:
        return self.question[0]


def last_token(prefix: Int[Array, "P L"], prefix_len: Int[Array, " P"]) -> Int[Array, " P"]:
    return jnp.take_along_axis(prefix, prefix_len[:, None] - 1, 1)[:, 0]


def content_length(judge: Judge, thought: Int[Array, "*rows T"], thought_len: Int[Array, "*rows"]):
    """Thought tokens without the end token: `thought_len` less one where the thought ended itself."""
    final = jnp.take_along_axis(thought, thought_len[..., None] - 1, -1)[..., 0]
    return thought_len - (final == judge.end)


def answer_logps(
    judge: Judge, params, hidden: Float[Array, "*rows D"], answer: Int[Array, "*rows"], verdict=None
) -> tuple[Float[Array, "*rows"], Float[Array, "*rows"], Float[Array, "*rows"] | None]:
    """Log score of the target answer by the judge's read-out, the probability mass on all answers, and the
    log-probability of a drawn verdict where there is one."""
    targets = [answer, *(jnp.full_like(answer, a) for a in judge.answers)]
    targets = jnp.stack(targets if verdict is None else [*targets, verdict], -1)
    logp, _ = token_logps(hidden, output_table(params), targets, chunk=judge.chunk)
    each = range(1, 1 + len(judge.answers))
    log_mass = functools.reduce(jnp.logaddexp, (logp[..., i] for i in each))
    if judge.readout == "ordinal":
        by_pair = logp[..., 1 : each.stop].reshape(-1, 2, *logp.shape[1:-1], len(each))
        score = judge.value_scores(by_pair).reshape(log_mass.shape)
    else:
        score = logp[..., 0] - log_mass if judge.readout == "choices" else logp[..., 0]
    return score, jnp.exp(log_mass), None if verdict is None else logp[..., -1]


def no_thoughts(batch: PreferenceBatch, end: int) -> ThoughtBatch:
    """One thought per response that ends at once: the end token, which was not drawn."""
    shape = (*batch.answer.shape, 1)
    thought = np.full((*shape, 1), end, np.int32)
    return ThoughtBatch(thought, np.ones(shape, np.int32), np.zeros(thought.shape, np.float32))


def with_empty_thought(thoughts: ThoughtBatch, end: int) -> ThoughtBatch:
    """The same groups, each with one more thought behind it: one that ends at once, which was not drawn."""

    def behind(array, value):
        return jnp.pad(array, [(0, axis == 2) for axis in range(array.ndim)], constant_values=value)

    return ThoughtBatch(behind(thoughts.thought, end), behind(thoughts.thought_len, 1), behind(thoughts.old_logp, 0))


def branch_size(judge: Judge, max_thought: int) -> int:
    """Tokens of a branch at most: the opening one, the thought, the question. A value head needs no branch."""
    return 0 if judge.readout == "value" else 1 + max_thought + len(judge.question)


def rewards(judge: Judge, params, batch: PreferenceBatch) -> Float[Array, "B S"]:
    """Scores of both sides from value head . hidden state at the last token of the prefix; float32."""
    prefix = batch.prefix.reshape(-1, 1, batch.prefix.shape[-1])
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[-1]), prefix.shape)
    hidden, _ = judge.model.apply(params, prefix, positions)
    last = jnp.take_along_axis(hidden[:, 0], batch.prefix_len.reshape(-1, 1, 1) - 1, 1)[:, 0]
    return judge.value_scores(logits(last, params["params"]["value_head"]).reshape(*batch.answer.shape, -1))


def logps(
    judge: Judge, params, batch: PreferenceBatch, thoughts: ThoughtBatch, packing: Packing | None = None
) -> Logps:
    """Log-probabilities of thoughts and answers, log pi(o | x, y) by token and log pi(a | x, y, o).

    The prefix of a response runs through the model once for its whole group; the gradient flows back through
    it and equals that of G independent sequences. So it is where branches are packed into fewer lanes. With the
    read-out "value" the scores of values stand where log scores stand, for P(y+ > y-) = sigmoid(r+ - r-) as it is of
    log p.
    """
    B, S, G, T = thoughts.thought.shape
    if judge.readout == "value":
        zeros = jnp.zeros((B, S, G, T))
        return Logps(zeros, rewards(judge, params, batch)[..., None], jnp.ones((B, S, G)), zeros)
    rows, table = B * S, output_table(params)
    prefix_len = batch.prefix_len.reshape(rows)
    prefix = batch.prefix.reshape(rows, -1)
    thought = thoughts.thought.reshape(rows, G, T)
    thought_len = thoughts.thought_len.reshape(rows, G)
    content = content_length(judge, thought, thought_len)
    tokens, positions = _branches(judge, thought, content, last_token(prefix, prefix_len), prefix_len)
    size = tokens.shape[-1]
    start, segments = jnp.arange(G) * size, None
    if packing is not None:
        source = packing.source.reshape(rows, -1, size)
        start, segments = packing.place.reshape(rows, G), source // size
        tokens, positions = (_pick(x, jnp.maximum(source, 0)) for x in (tokens, positions))
    hidden, _ = judge.model.apply(params, tokens, positions, prefix=Prefix(prefix, prefix_len - 1), segments=segments)

    # the hidden state of a token is for the one after it, and what follows a thought is masked
    heard, targets = (hidden[:, :, :T], thought) if packing is None else (hidden, jnp.roll(tokens, -1, -1))
    logp, entropy = token_logps(heard, table, targets[..., None], temperature=judge.temperature, chunk=judge.chunk)
    logp = logp[..., 0]
    if packing is not None:
        places = jnp.minimum(start[..., None] + jnp.arange(T), hidden.shape[1] * size - 1)
        logp, entropy = _pick(logp, places), _pick(entropy, places)
    written = jnp.arange(T) < thought_len[..., None]
    at_answer = (start + content + len(judge.question))[..., None]
    at_answer = jnp.take_along_axis(hidden.reshape(rows, -1, hidden.shape[-1]), at_answer, 1)
    answer = jnp.broadcast_to(batch.answer.reshape(rows, 1), (rows, G))
    drawn = None if thoughts.verdict is None else thoughts.verdict.token.reshape(rows, G)
    score, mass, verdict = answer_logps(judge, params, at_answer, answer, drawn)
    return Logps(
        thought=jnp.where(written, logp, 0.0).reshape(B, S, G, T),
        answer=score.reshape(B, S, G),
        answer_mass=mass.reshape(B, S, G),
        entropy=jnp.where(written, entropy, 0.0).reshape(B, S, G, T),
        verdict=None if verdict is None else verdict.reshape(B, S, G),
    )


def _branches(judge, thought, content, last, prefix_len) -> tuple[Int[Array, "P G T"], Int[Array, "P G T"]]:
    """Tokens of the branches, the question right behind each thought's content, and their positions."""
    rows, G, T = thought.shape
    question = jnp.asarray(judge.question)
    index = jnp.arange(branch_size(judge, T))
    opened = jnp.concatenate([jnp.broadcast_to(last[:, None, None], (rows, G, 1)), thought], -1)
    body = jnp.pad(opened, ((0, 0), (0, 0), (0, len(question))))
    asked = index - (content[..., None] + 1)  # place in the question, negative before it
    tail = jnp.where(asked < len(question), question[jnp.clip(asked, 0, len(question) - 1)], judge.pad)
    tokens = jnp.where(asked < 0, body, tail)
    return tokens, jnp.broadcast_to((prefix_len - 1)[:, None, None] + index, tokens.shape)


def _pick(x: Array, index: Int[Array, "P *rest"]) -> Array:  # noqa: F821
    """Entries of [P, ...] by their index in what follows P."""
    flat = x.reshape(x.shape[0], -1)
    return jnp.take_along_axis(flat, index.reshape(x.shape[0], -1), 1).reshape(index.shape)
