"""The columns of a scored row, from the judge's answers to its questions."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.rows import Question, Row

ADDED = ("score", "log_odds", "votes", "thoughts", "rank", "dropped_turns", "error")  # the columns of a scored row
DETAILS = ("no_thought", "tokens")  # more of them, on demand


@dataclass
class Answer:
    """The judge's answer to a question: a log score for each vote, or a value head's outputs, and its thoughts.

    `no_thought` is the log score without a thought, where it was asked for. `written` is the number of thought tokens.
    `cut` thoughts have no end token: they reached the longest length.
    """

    values: Float[np.ndarray, " K"]
    thoughts: list[str] = field(default_factory=list)
    no_thought: Float[np.ndarray, " 1"] | None = None
    written: int = 0
    cut: int = 0


def scored(loaded: LoadedJudge, row: Row, answers: dict[tuple[int, ...], Answer]) -> dict:
    """The added columns of a row, from the answers to its questions."""
    count = len(row.responses)
    thoughts = [
        [text for which, a in sorted(answers.items()) if which[0] == i for text in a.thoughts] for i in range(count)
    ]
    value, odds, each = _values(loaded, count, {which: answer.values for which, answer in answers.items()})
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


def _values(
    loaded: LoadedJudge, count: int, values: Mapping[tuple[int, ...], Float[np.ndarray, " K"]]
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"], list]:
    """Scores, log-odds and votes of the responses, from the log scores or outputs about each question."""
    kind = loaded.card.kind
    each = [np.concatenate([x for which, x in sorted(values.items()) if which[0] == i]) for i in range(count)]
    if kind == "label":
        win = {which: float(np.exp(voting.mean_vote(log_scores))) for which, log_scores in values.items()}
        value = voting.against_others(win, count)
        return value, voting.log_odds(np.log(value)), [np.exp(log_scores) for log_scores in each]
    if kind == "embedding":
        value = voting.compared(_embedding_odds(loaded, np.stack([values[i,] for i in range(count)])))
        return value, voting.log_odds(np.log(value)), [[v] for v in value]
    if kind == "reward":
        value = np.array([rewards[0] for rewards in each], np.float64)
        return value, value, each
    log_p = np.array([voting.mean_vote(log_scores) for log_scores in each])
    return np.exp(log_p), voting.log_odds(log_p), [np.exp(log_scores) for log_scores in each]


def details(loaded: LoadedJudge, row: Row, answers: dict[tuple[int, ...], Answer], questions: list[Question]) -> dict:
    """The columns `DETAILS` of a row."""
    value, _, each = _values(loaded, len(row.responses), {which: a.no_thought for which, a in answers.items()})
    without = {"score": [float(x) for x in value], "votes": [[float(x) for x in scores] for scores in each]}
    written = sum(answer.written for answer in answers.values()) if loaded.card.thoughts != "none" else 0
    return {
        "no_thought": {name: values[0] if row.single else values for name, values in without.items()},
        "tokens": {"prefix": sum(len(question.prefix) for question in questions), "thoughts": written},
    }


def _embedding_odds(loaded: LoadedJudge, values: Float[np.ndarray, "R K"]) -> Float[np.ndarray, "R R"]:
    """The log-odds of response i over response j, in nats, from the objective's comparison of their embeddings."""
    count = len(values)
    pairs = np.stack([np.stack([values[i], values[j]]) for i in range(count) for j in range(count)])
    halves = np.asarray(loaded.judge.value_scores(jnp.asarray(pairs)), np.float64)
    return (halves[:, 0] - halves[:, 1]).reshape(count, count)


def merged(row: dict | str | None, scored: dict, detailed: bool) -> dict:
    added = ADDED + DETAILS if detailed else ADDED
    given = row.items() if isinstance(row, dict) else ()
    kept = {f"input_{name}" if name in added else name: value for name, value in given}
    empty = dict.fromkeys(ADDED[:-2]) if "error" in scored else {}
    return kept | empty | scored
