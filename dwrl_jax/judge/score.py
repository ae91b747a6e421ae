"""Scores of rows: any number of responses to a conversation, by any kind of judge.

A row's scores depend only on the judge, the row, the votes and the seed. The keys come from the row's own tokens. The
other rows, the order of rows and padding have no influence beyond the rounding of float32.
"""

import functools
import itertools
from collections import deque
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
from dwrl_jax.generation.sampler import SamplerOptions, follow, without_thought, write
from dwrl_jax.judge import columns
from dwrl_jax.judge.batching import Answers, answered, window_size
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.judge import Judge, answer_logps, branch_length, value_outputs
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.rows import Question, Row, bucket_of, questions_of, read_row
from dwrl_jax.judge.votes import Adaptive


@dataclass
class Work:
    """Numbers of prefix tokens that were asked, and of positions that held them with all padding."""

    tokens: int = 0
    positions: int = 0

    @property
    def padding(self) -> float:
        """Share of the positions that held no token."""
        return 1 - self.tokens / self.positions if self.positions else 0.0


def score(
    loaded: LoadedJudge,
    rows: Iterable[dict | str | None],
    votes: int | Adaptive = 8,
    *,
    seed: int = 0,
    batch_size: int = 16,
    work: Work | None = None,
    done: int = 0,
) -> Iterator[dict]:
    """The rows in their order, each with its own columns and the columns `columns.ADDED`.

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
    column is kept as input_NAME. A judge without thoughts has a single vote. With `Adaptive` votes a row has as many as
    it needs. `batch_size` questions are asked at a time.

    With `work`, which then counts tokens and padding, rows have two more columns, and scores stay as they are:
    `no_thought`  score and votes of the judge without a thought: {"score", "votes"};
    `tokens`      numbers of tokens: {"prefix": of all questions, "thoughts": of all thoughts}.

    The first `done` rows are left out, because an earlier call gave them. With the same `batch_size` the other rows are
    in the same batches as in a single call, so that they are equal to the last bit.

    UserError if `votes` is below 1 or if the mesh does not divide `batch_size`.
    """
    rounds = votes.asked if isinstance(votes, Adaptive) else (votes,)
    if min(rounds) < 1:
        raise UserError(f"votes={votes}: must be at least 1")
    with jax.set_mesh(loaded.mesh):
        sharding.check_divides(loaded.mesh, sharding.ROWS, batch_size, "batch_size")
    rounds = rounds if loaded.card.thoughts != "none" else (1,)
    rule = votes if isinstance(votes, Adaptive) and len(rounds) > 1 else None
    ask = functools.partial(begin_batch, loaded, batch_size=batch_size, seed=seed, work=work)
    prepared: deque[Prepared] = deque()
    known = done % window_size(batch_size)  # rows of the window that is begun again

    def questions() -> Iterator[list[tuple[int, Question]]]:
        for row in itertools.islice(rows, done - known, None):
            prepared.append(prepare(loaded, row))
            yield prepared[-1].questions

    told = answered(questions(), ask, batch_size, rounds, rule, known)
    for row, answers in enumerate(told):
        made = prepared.popleft()
        if row >= known:
            yield finished(loaded, made, answers, work is not None)


@dataclass
class Prepared:
    """A row with its questions, each with its padded length; or with the reason why it cannot be scored."""

    row: dict | str | None
    read: Row | None = None
    questions: list[tuple[int, Question]] = field(default_factory=list)
    dropped: int = 0
    error: str | None = None


def prepare(loaded: LoadedJudge, row: dict | str | None) -> Prepared:
    """The row with its questions."""
    limit = longest_prefix(loaded)
    try:
        read = read_row(row, loaded.card.kind)
        questions, dropped = questions_of(read, loaded.card.kind, loaded.dialogue, limit)
    except (Malformed, UserError) as reason:  # a chat template may refuse a conversation
        return Prepared(row, error=str(reason))
    return Prepared(row, read, [(bucket_of(len(each.prefix), loaded.card, limit), each) for each in questions], dropped)


def finished(loaded: LoadedJudge, prepared: Prepared, answers: Answers, detailed: bool) -> dict:
    """The row with its columns."""
    if prepared.error is not None:
        return columns.merged(prepared.row, {"error": prepared.error}, detailed)
    scored = columns.scored(loaded, prepared.read, answers)
    if detailed and "error" not in scored:
        scored |= columns.details(loaded, prepared.read, answers, [question for _, question in prepared.questions])
    if prepared.dropped and "error" not in scored:
        scored["dropped_turns"] = prepared.dropped
    return columns.merged(prepared.row, scored, detailed)


def longest_prefix(loaded: LoadedJudge) -> int:
    """The largest number of prefix tokens that leaves room for a thought and its question."""
    room = max(branch_length(loaded.judge, loaded.card.max_thought) - 1, 0)
    return loaded.judge.model.config.max_position - room


def ask_batch(loaded: LoadedJudge, questions: list[Question], length: int, **options) -> list[Answer]:
    """The answers to a batch of questions; the arguments are those of `begin_batch`."""
    return begin_batch(loaded, questions, length, **options)()


def begin_batch(
    loaded: LoadedJudge,
    questions: list[Question],
    length: int,
    *,
    batch_size: int,
    votes: int,
    first: int,
    seed: int,
    work: Work | None = None,
) -> Callable[[], list[Answer]]:
    """Begin to answer questions, padded to a given length and a given number of rows.

    It returns a function that waits for the device and gives the answers. The votes have the numbers from `first` on.
    The first votes come with the answers without a thought, if there is `work` to count.
    """
    rows = questions + questions[:1] * (batch_size - len(questions))
    prefix = np.full((batch_size, length), loaded.judge.pad, np.int32)
    for row, question in zip(prefix, rows):
        row[: len(question.prefix)] = question.prefix
    prefix_len = np.array([len(question.prefix) for question in rows], np.int32)
    content = np.stack([content_seed(question.prefix) for question in rows])
    card = loaded.card
    options = SamplerOptions(votes, card.max_thought, card.top_k, card.top_p)
    plain = work is not None and first == 0
    with jax.set_mesh(loaded.mesh):
        arrays = prefix, prefix_len, content, seed, first
        answers = _answers(loaded.judge, card.thoughts, options, plain, loaded.params, loaded.start, *arrays)
    if work is not None:
        work.tokens += sum(len(question.prefix) for question in questions)
        work.positions += prefix.size
    return functools.partial(_told, loaded, answers, len(questions), plain)


def _told(loaded: LoadedJudge, answers: tuple[Array, ...], count: int, plain: bool) -> list[Answer]:
    """The first `count` rows of the results of `_answers`."""
    values, thought, lengths, without = jax.device_get(answers)
    return [
        Answer(
            values[i],
            _texts(loaded, thought[i], lengths[i]),
            without[i] if plain else None,
            int(lengths[i].sum()),
            sum(ids[size - 1] != loaded.judge.end for ids, size in zip(thought[i], lengths[i])),
        )
        for i in range(count)
    ]


@functools.partial(jax.jit, static_argnames=("judge", "source", "options", "plain"))
def _answers(
    judge: Judge,
    source: str,
    options: SamplerOptions,
    plain: bool,
    params,
    start,
    prefix: Int[Array, "P L"],
    prefix_len: Int[Array, " P"],
    content: UInt32[Array, "P 2"],
    seed: int,
    first: int,
) -> tuple[Float[Array, "P K"], Int[Array, "P K T"], Int[Array, "P K"], Float[Array, "P _"]]:
    """The log scores of the first answer for each vote, or a value head's outputs; the thoughts; their lengths.

    `source` says whose thoughts they are, as `JudgeCard.thoughts` does. With `plain` the last result has the log scores
    without a thought, or again the outputs. All results lie whole on every device.
    """
    rows = len(prefix_len)
    if judge.has_value_head:
        values = value_outputs(judge, params, prefix, prefix_len)
        thought, length = jnp.zeros((rows, 0, 1), jnp.int32), jnp.zeros((rows, 0), jnp.int32)
        return tuple(map(_whole, (values, thought, length, values)))
    keys = content_keys(seed, content, options.group_size, first)
    empty, one = jnp.full((rows, 1, 1), judge.end, jnp.int32), jnp.ones((rows, 1), jnp.int32)
    forced = functools.partial(teacher_forced, judge.writer, params, prefix, prefix_len)
    if source == "policy":
        drawn, cache = write(judge.writer, options, params, prefix, prefix_len, keys)
        thought, length = drawn.thought, drawn.length
        hidden, params = follow(cache, judge.question), cache.params
        without = follow(without_thought(cache), judge.question) if plain else None
    else:
        thought, length = empty, one
        if source == "start":
            drawn, _ = write(judge.writer, options, start, prefix, prefix_len, keys)
            thought, length = drawn.thought, drawn.length
        hidden = forced(thought, length, judge.question).last
        without = forced(empty, one, judge.question).last if plain and source == "start" else hidden
    log_scores = _first_answer(judge, params, hidden)
    without = _first_answer(judge, params, without) if plain else log_scores[:, :0]
    return tuple(map(_whole, (log_scores, thought, length, without)))


def _first_answer(judge: Judge, params, hidden: Float[Array, "P K D"]) -> Float[Array, "P K"]:
    return answer_logps(judge, params, hidden, jnp.full(hidden.shape[:2], judge.answers[0]))[0]


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
