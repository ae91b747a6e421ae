"""Hold an exported judge's scores against those that transformers gives with the same files, in float32.

transformers gets what any server of language models gets: the conversation with the text of a thought, rendered by the
chat template. It gives the log-probability of each answer in its place. A value head gives its outputs.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE, CARD
from dwrl_jax.dialogue import render
from dwrl_jax.judge import columns
from dwrl_jax.judge.card import JudgeCard, read_card
from dwrl_jax.judge.columns import Answer
from dwrl_jax.judge.judge import Judge, answer_logps, mean_score
from dwrl_jax.judge.load import LoadedJudge, load
from dwrl_jax.judge.rows import Question
from dwrl_jax.judge.score import Prepared, ask_batch, prepare

LIMIT = 1e-4
PAD_TO = 64  # tokens of a text are padded to a multiple of it, so that few programs are compiled
Theirs = Callable[[list[int]], Float[np.ndarray, " K"]]


@dataclasses.dataclass
class Comparison:
    """Largest differences between the two sides.

    `outputs` is that of the `votes`: of their log scores in nats, or of a value head's outputs. `scores` is that of the
    scores of the `responses`. For `changed` votes both sides read other tokens than those that the judge wrote: the
    text of a thought does not always give its tokens back. `errors` rows have no scores.
    """

    responses: int = 0
    votes: int = 0
    changed: int = 0
    errors: int = 0
    outputs: float = 0.0
    scores: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether something was compared and all differences are within `LIMIT`. NaN is never equal."""
        return self.responses > 0 and self.outputs <= LIMIT and self.scores <= LIMIT


def compare(folder: Path, rows: Iterable[dict | None], votes: int = 4, *, seed: int = 0) -> Comparison:
    """Score rows with the exported judge in `folder` on both sides. UserError if it is no export of a judge."""
    if (folder / ARCHITECTURE).is_dir() or not (folder / CARD).is_file():
        raise UserError(f"{folder}: no export of a judge; make it with python -m dwrl_jax.export")
    card = dataclasses.replace(read_card(folder / CARD), dtype="float32")
    if card.thoughts == "start":
        raise UserError(f"{folder}: this judge reads thoughts of another model, which its export does not have")
    loaded = load(folder, card=card)
    theirs, result = _transformers(folder, loaded), Comparison()
    for row in rows:
        _compare_row(loaded, theirs, row, votes if card.thoughts == "policy" else 1, seed, result)
    return result


def _compare_row(loaded: LoadedJudge, theirs: Theirs, row: dict | None, votes: int, seed: int, result: Comparison):
    prepared = prepare(loaded, row)
    if prepared.error is not None:
        result.errors += 1
        return
    ours, other = {}, {}
    for length, question in prepared.questions:
        size = loaded.mesh.size
        answer = ask_batch(loaded, [question], length, batch_size=size, votes=votes, first=0, seed=seed)[0]
        if loaded.judge.has_value_head:
            mine, told = answer.values, theirs(question.prefix.tolist())
        else:
            asked = [_asked(loaded, prepared, question, text) for text in answer.thoughts or [""]]
            mine = np.array([_ours(loaded, ids) for ids in asked])
            told = np.array([_log_score(loaded.card, theirs(ids)) for ids in asked])
            result.changed += int(np.sum(np.abs(mine - answer.values) > LIMIT))
        ours[question.responses], other[question.responses] = Answer(mine), Answer(told)
        result.votes += max(len(answer.thoughts), 1)
        result.outputs = _largest(result.outputs, mine - told)
    scores = [columns.scored(loaded, prepared.read, answers) for answers in (ours, other)]
    difference = np.nan if any("error" in each for each in scores) else np.subtract(*(each["score"] for each in scores))
    result.responses += len(prepared.read.responses)
    result.scores = _largest(result.scores, difference)


def _largest(so_far: float, difference) -> float:
    return float(np.max(np.abs(np.append(so_far, difference))))  # keeps NaN


def _asked(loaded: LoadedJudge, prepared: Prepared, question: Question, thought: str) -> list[int]:
    """The tokens up to the place of the answer, from one rendering of the conversation with the text of a thought."""
    prompt, responses = prepared.read.prompt, [prepared.read.responses[i] for i in question.responses]
    keep = 1 if prompt[0]["role"] == "system" else 0
    asked = (*prompt[:keep], *prompt[keep + prepared.dropped :]), responses if len(responses) > 1 else responses[0]
    ids, others = (render(loaded.dialogue, *asked, thought, answer) for answer in loaded.card.texts.answers[:2])
    return ids[: next(i for i, (a, b) in enumerate(zip(ids, others)) if a != b)]


def _ours(loaded: LoadedJudge, ids: list[int]) -> float:
    tokens = np.full((1, 1, -(-len(ids) // PAD_TO) * PAD_TO), loaded.judge.pad, np.int32)
    tokens[0, 0, : len(ids)] = ids
    with jax.set_mesh(loaded.mesh):
        return float(_read(loaded.judge, loaded.params, tokens, len(ids))[0])


@functools.partial(jax.jit, static_argnames="judge")
def _read(judge: Judge, params, tokens: Int[Array, "1 1 L"], length: int) -> Float[Array, " 1"]:
    """The log score of the first answer behind the first `length` tokens, from one pass over all of them."""
    hidden, _ = judge.model.apply(params, tokens, jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape))
    return answer_logps(judge, params, hidden[:, 0, length - 1], jnp.full(1, judge.answers[0]))[0]


def _log_score(card: JudgeCard, logp: Float[np.ndarray, " K"]) -> float:
    """The log score from the log-probabilities of the answers, as `answer_logps` reads it."""
    if card.kind == "score":
        return float(mean_score(jnp.asarray(logp)))
    return float(logp[0] - np.logaddexp.reduce(logp) if card.readout == "choices" else logp[0])


def _transformers(folder: Path, loaded: LoadedJudge) -> Theirs:
    """A function from token ids to the log-probabilities of the answers behind them, or to a value head's outputs."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    except ImportError as error:
        raise UserError(f"{error}: the other side is transformers with PyTorch; pip install torch") from None
    kind = AutoModelForSequenceClassification if loaded.judge.has_value_head else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()

    def outputs(ids: list[int]) -> Float[np.ndarray, " K"]:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits
        if loaded.judge.has_value_head:
            return logits[0].numpy()
        return torch.log_softmax(logits[0, -1], -1)[list(loaded.judge.answers)].numpy()

    return outputs
