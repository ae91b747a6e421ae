"""Scores of rows: any number of responses to a conversation, by any kind of judge.

A row's scores depend only on the judge, the row, the votes and the seed. The keys come from the row's own tokens, and
the padded length from its own length. The other rows and the order of rows have no influence.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.data.formats import Malformed
from dwrl_jax.generation.forced import teacher_forced
from dwrl_jax.generation.keys import content_keys, content_seed
from dwrl_jax.generation.sampler import SamplerOptions, follow, write
from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.judge import Judge, answer_logps, branch_length, value_outputs
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.rows import Question, bucket_of, questions_of, read_row

WINDOW = 8  # number of batches of rows whose questions are sorted by length together
ADDED = ("score", "log_odds", "votes", "thoughts", "rank", "dropped_turns", "error")  # the columns of a scored row


@dataclass
class Answer:
    """The judge's answer to a question: a log score for each vote, or a value head's outputs, and its thoughts."""

    values: Float[np.ndarray, " K"]
    thoughts: list[str] = field(default_factory=list)


def score(
    loaded: LoadedJudge, rows: Iterable[dict | str | None], votes: int = 8, *, seed: int = 0, batch_size: int = 16
) -> Iterator[dict]:
    """The rows in their order, each with its own columns and the columns `ADDED`.

    A row has `prompt` and `response` or `responses`, or it is a preference pair. A string says why a row could not be
    read. The columns that are added:
    `score`     by kind of judge: the mean over votes of the probability of the good answer or of the mean score; the
                reward; or the mean probability to win against the row's other responses;
    `log_odds`  log p - log(1 - p) of the score p, in nats; for a reward the reward itself;
    `votes`     the score of each vote, in the order of asking;
    `thoughts`  the texts of the votes' thoughts, in the same order;
    `rank`      1 for the best response;
    `dropped_turns`  only where the model is too short for the conversation: the number of oldest turns left out;
    `error`     only in a row that cannot be scored: the reason. The other columns are then None.

    If the row has `responses`, the columns are lists over them. If the row already has a column of such a name, that
    column is kept as input_NAME. A judge without thoughts has a single vote. `batch_size` questions are asked at a
    time. UserError if `votes` is below 1 or if the mesh does not divide `batch_size`.
    """
    if votes < 1:
        raise UserError(f"votes={votes}: must be at least 1")
    with jax.set_mesh(loaded.mesh):
        sharding.check_divides(loaded.mesh, sharding.ROWS, batch_size, "batch_size")
    votes = votes if loaded.card.thoughts != "none" else 1
    ask = functools.partial(_ask, loaded, batch_size=batch_size, votes=votes, seed=seed)
    iterator = iter(rows)
    while window := list(itertools.islice(iterator, WINDOW * batch_size)):
        yield from _score_window(loaded, ask, window, batch_size)


def _score_window(loaded: LoadedJudge, ask: Callable, rows: list[dict | str | None], batch_size: int) -> Iterator[dict]:
    read, asked, dropped, reasons = {}, {}, {}, {}
    limit = longest_prefix(loaded)
    for index, row in enumerate(rows):
        try:
            read[index] = read_row(row, loaded.card.kind)
            questions, dropped[index] = questions_of(read[index], loaded.card.kind, loaded.dialogue, limit)
            asked[index] = [(bucket_of(len(each.prefix), loaded.card, limit), each) for each in questions]
        except (Malformed, UserError) as reason:  # a chat template may refuse a conversation
            reasons[index] = str(reason)
    by_bucket: dict[int, list[tuple[int, Question]]] = {}
    for index, questions in asked.items():
        for bucket, question in questions:
            by_bucket.setdefault(bucket, []).append((index, question))
    answers: dict[int, dict[tuple[int, ...], Answer]] = {index: {} for index in asked}
    for bucket, questions in sorted(by_bucket.items()):
        for start in range(0, len(questions), batch_size):
            batch = questions[start : start + batch_size]
            for (index, question), answer in zip(batch, ask([q for _, q in batch], bucket)):
                answers[index][question.responses] = answer
    for index, row in enumerate(rows):
        scored = {"error": reasons[index]} if index in reasons else _scored(loaded, read[index], answers[index])
        if dropped.get(index) and "error" not in scored:
            scored["dropped_turns"] = dropped[index]
        yield _merged(row, scored)


def longest_prefix(loaded: LoadedJudge) -> int:
    """The largest number of prefix tokens that leaves room for a thought and its question."""
    room = max(branch_length(loaded.judge, loaded.card.max_thought) - 1, 0)
    return loaded.judge.model.config.max_position - room


def _ask(
    loaded: LoadedJudge, questions: list[Question], length: int, batch_size: int, votes: int, seed: int
) -> list[Answer]:
    """The answers to a batch of questions, padded to a given length and a given number of rows."""
    rows = questions + questions[:1] * (batch_size - len(questions))
    prefix = np.full((batch_size, length), loaded.judge.pad, np.int32)
    for row, question in zip(prefix, rows):
        row[: len(question.prefix)] = question.prefix
    prefix_len = np.array([len(question.prefix) for question in rows], np.int32)
    content = np.stack([content_seed(question.prefix) for question in rows])
    card = loaded.card
    options = SamplerOptions(votes, card.max_thought, card.top_k, card.top_p)
    with jax.set_mesh(loaded.mesh):
        answers = _answers(
            loaded.judge, card.thoughts, options, loaded.params, loaded.start, prefix, prefix_len, content, seed
        )
        values, thought, lengths = jax.device_get(answers)
    return [Answer(values[i], _texts(loaded, thought[i], lengths[i])) for i in range(len(questions))]


@functools.partial(jax.jit, static_argnames=("judge", "source", "options"))
def _answers(
    judge: Judge,
    source: str,
    options: SamplerOptions,
    params,
    start,
    prefix: Int[Array, "P L"],
    prefix_len: Int[Array, " P"],
    content: UInt32[Array, "P 2"],
    seed: int,
) -> tuple[Float[Array, "P K"], Int[Array, "P K T"], Int[Array, "P K"]]:
    """The log scores of the first answer for each vote, or a value head's outputs; the thoughts; their lengths.

    `source` says whose thoughts they are, as `JudgeCard.thoughts` does. All results lie whole on every device.
    """
    rows = len(prefix_len)
    if judge.has_value_head:
        values = value_outputs(judge, params, prefix, prefix_len)
        thought, length = jnp.zeros((rows, 0, 1), jnp.int32), jnp.zeros((rows, 0), jnp.int32)
        return tuple(map(_whole, (values, thought, length)))
    keys = content_keys(seed, content, options.group_size)
    if source == "policy":
        drawn, cache = write(judge.writer, options, params, prefix, prefix_len, keys)
        hidden, params = follow(cache, judge.question), cache.params
        thought, length = drawn.thought, drawn.length
    else:
        thought, length = jnp.full((rows, 1, 1), judge.end, jnp.int32), jnp.ones((rows, 1), jnp.int32)
        if source == "start":
            drawn, _ = write(judge.writer, options, start, prefix, prefix_len, keys)
            thought, length = drawn.thought, drawn.length
        hidden = teacher_forced(judge.writer, params, prefix, prefix_len, thought, length, judge.question).last
    answer = jnp.full(hidden.shape[:2], judge.answers[0])
    log_scores, _, _ = answer_logps(judge, params, hidden, answer)
    return tuple(map(_whole, (log_scores, thought, length)))


def _whole(x: Array) -> Array:
    return sharding.constrain(x, *[None] * x.ndim)


def _texts(loaded: LoadedJudge, thought: Int[np.ndarray, "K T"], length: Int[np.ndarray, " K"]) -> list[str]:
    if loaded.card.thoughts == "none":
        return []
    texts = []
    for ids, size in zip(thought, length):
        written = ids[: size - 1] if ids[size - 1] == loaded.judge.end else ids[:size]
        texts.append(loaded.dialogue.tokenizer.decode(written, skip_special_tokens=False))
    return texts


def _scored(loaded: LoadedJudge, row, answers: dict[tuple[int, ...], Answer]) -> dict:
    """The added columns of a row, from the answers to its questions."""
    kind, count = loaded.card.kind, len(row.responses)
    thoughts = [
        [text for which, a in sorted(answers.items()) if which[0] == i for text in a.thoughts] for i in range(count)
    ]
    each = [np.concatenate([a.values for which, a in sorted(answers.items()) if which[0] == i]) for i in range(count)]
    if kind == "label":
        win = {which: float(np.exp(voting.mean_vote(answer.values))) for which, answer in answers.items()}
        value = voting.against_others(win, count)
        odds, each = voting.log_odds(np.log(value)), [np.exp(log_scores) for log_scores in each]
    elif kind == "embedding":
        values = np.stack([answers[i,].values for i in range(count)])
        value = voting.compared(_embedding_odds(loaded, values))
        odds, each = voting.log_odds(np.log(value)), [[v] for v in value]
    elif kind == "reward":
        value = odds = np.array([values[0] for values in each], np.float64)
    else:
        log_p = np.array([voting.mean_vote(log_scores) for log_scores in each])
        value, odds, each = np.exp(log_p), voting.log_odds(log_p), [np.exp(log_scores) for log_scores in each]
    if not (np.isfinite(value).all() and np.isfinite(odds).all()):
        return {"error": "the score is not finite: the weights are broken, or too large for their dtype"}
    columns = {
        "score": [float(x) for x in value],
        "log_odds": [float(x) for x in odds],
        "votes": [[float(x) for x in scores] for scores in each],
        "thoughts": thoughts,
        "rank": [int(x) for x in voting.ranks(value)],
    }
    return {name: values[0] if row.single else values for name, values in columns.items()}


def _embedding_odds(loaded: LoadedJudge, values: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R R"]:
    """The log-odds of response i over response j, in nats, from the objective's comparison of their embeddings."""
    count = len(values)
    pairs = np.stack([np.stack([values[i], values[j]]) for i in range(count) for j in range(count)])
    halves = np.asarray(loaded.judge.value_scores(jnp.asarray(pairs)), np.float64)
    return (halves[:, 0] - halves[:, 1]).reshape(count, count)


def _merged(row: dict | str | None, scored: dict) -> dict:
    columns = row.items() if isinstance(row, dict) else ()
    kept = {f"input_{name}" if name in ADDED else name: value for name, value in columns}
    empty = dict.fromkeys(ADDED[:-2]) if "error" in scored else {}
    return kept | empty | scored
