"""The score of an exported judge from vLLM's server, by two kinds of calls of /v1/chat/completions.

    thoughts  the conversation that ends with `judge_question`, n choices
    answers   the same, a thought, `answer_question` and an answer, whose last token's log-probability is read

It is the score of `dwrl_jax.judge.score` in another sample of thoughts: vLLM draws with its own random numbers. The
same thoughts have the same score. Start it with `--generation-config vllm`, or it may change temperature and top-p.
"""

import functools
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dwrl_jax.adapters.client import JudgeError, Server, at_once, post, server
from dwrl_jax.dialogue.questions import Texts, before_thought, message

PATH = "/v1/chat/completions"


def score(
    card: dict | str | Path,
    messages: Sequence[dict],
    responses: Sequence[str],
    votes: int = 8,
    *,
    model: str,
    url: str = "http://127.0.0.1:8000",
    seed: int | None = None,
    **settings,
) -> dict[str, list]:
    """{"score": [...], "votes": [[...], ...], "thoughts": [[...], ...]} of responses to a conversation.

    `card` is the export's judge.json, and `model` its name in vLLM. The order of votes and thoughts is that of
    `dwrl_jax.judge.score`. Raises JudgeError where there is no score, and for a judge that cannot be asked so.
    """
    card = card if isinstance(card, dict) else json.loads(Path(card).read_text(encoding="utf-8"))
    texts, kind = Texts(**card["texts"]), card["kind"]
    if kind not in ("verdict", "label", "score") or texts.layout != "two_turns" or card["thoughts"] == "start":
        raise JudgeError(
            "only a judge that reads its own thoughts, in two turns, can be asked through chat completions"
        )
    if texts.control == "escape":
        raise JudgeError("vLLM would read control tokens in a text, which this judge reads as plain text")
    if kind == "label" and len(responses) < 2:
        raise JudgeError("one response, but this judge compares responses")
    at, count = server(url, **settings), range(len(responses))
    pairs = [(i, j) for i in count for j in count if i != j] if kind == "label" else [(i,) for i in count]
    told = {}
    for about in pairs:
        judged = tuple(responses[i] for i in about) if kind == "label" else responses[about[0]]
        asked = before_thought(texts, list(messages), judged)
        written = _thoughts(at, card, texts, asked, votes, model, seed)
        values = at_once(at, [functools.partial(_vote, at, card, texts, asked, text, model) for text in written])
        for value in values:
            if isinstance(value, JudgeError):
                raise value
        told[about] = values, written
    own = [[told[about] for about in pairs if about[0] == i] for i in count]
    each = [[value for values, _ in answers for value in values] for answers in own]
    mean = {about: statistics.fmean(values) for about, (values, _) in told.items()}
    scores = [statistics.fmean(values) for values in each]
    if kind == "label":
        scores = [statistics.fmean((mean[i, j] + 1 - mean[j, i]) / 2 for j in count if j != i) for i in count]
    return {"score": scores, "votes": each, "thoughts": [[t for _, texts in answers for t in texts] for answers in own]}


def thought_call(card: dict, texts: Texts, asked: list[dict], votes: int, model: str, seed: int | None) -> dict:
    """The body of the call that writes thoughts."""
    return _common(texts, model, asked) | {
        "n": votes,
        "max_tokens": card["max_thought"],
        "temperature": card["temperature"],
        "top_p": card["top_p"],
        "top_k": card["top_k"] or -1,
        "seed": seed,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    }


def answer_call(texts: Texts, asked: list[dict], thought: str, answer: str, model: str) -> dict:
    """The body of the call that reads the probability of an answer. The last token of its prompt is the answer."""
    turns = [message("assistant", thought), message("user", texts.answer_question), message("assistant", answer)]
    return _common(texts, model, [*asked, *turns]) | {
        "add_generation_prompt": False,
        "continue_final_message": True,
        "prompt_logprobs": 0,
        "max_tokens": 1,
        "temperature": 0,
    }


def _common(texts: Texts, model: str, messages: list[dict]) -> dict:
    arguments = {"date_string": texts.date} | texts.template_arguments
    return {"model": model, "messages": messages, "chat_template_kwargs": arguments}


def _thoughts(at: Server, card: dict, texts: Texts, asked, votes: int, model: str, seed) -> list[str]:
    if card["thoughts"] == "none":
        return [""]
    choices = post(at, PATH, thought_call(card, texts, asked, votes, model, seed)).get("choices") or []
    written = [choice["message"].get("content") or "" for choice in choices]
    if len(written) != votes:
        raise JudgeError(f"{at.url}: {len(written)} thoughts in the reply, not {votes}")
    return written


def _vote(at: Server, card: dict, texts: Texts, asked, thought: str, model: str) -> float:
    """The probability of the first answer, or the mean score, after a thought."""
    whole = card["kind"] == "score" or card["readout"] == "choices"
    answers = texts.answers if whole else texts.answers[:1]
    p = [math.exp(_logp(at, post(at, PATH, answer_call(texts, asked, thought, answer, model)))) for answer in answers]
    if card["kind"] == "score":
        return sum(p_k * (k + 0.5) / len(p) for k, p_k in enumerate(p)) / sum(p)
    return p[0] / sum(p) if whole else p[0]


def _logp(at: Server, reply: dict[str, Any]) -> float:
    """The log-probability of the last token of the prompt, which alone is told about its place."""
    told = list(((reply.get("prompt_logprobs") or [None])[-1] or {}).values())
    value = told[0].get("logprob") if len(told) == 1 else None
    if type(value) not in (int, float) or math.isnan(value):
        raise JudgeError(f"{at.url}: the reply has no log-probability of the answer")
    return float(value)
