"""What a server is made of, and the one way from a conversation and its responses to scores."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, Request

from dwrl_jax.core import files
from dwrl_jax.dialogue.tokenizers import one_line
from dwrl_jax.judge import votes as voting
from dwrl_jax.judge.load import LoadedJudge
from dwrl_jax.judge.rows import COMPARING
from dwrl_jax.judge.votes import Adaptive
from dwrl_jax.serving.batcher import RETRY, Batcher, Row
from dwrl_jax.serving.cohorts import Cohorts
from dwrl_jax.serving.deadlines import Deadlines
from dwrl_jax.serving.failures import Refused
from dwrl_jax.serving.metrics import Metrics
from dwrl_jax.serving.settings import ServeSettings
from dwrl_jax.serving.transcript import Marks, marks_of


@dataclass(eq=False)
class Service:
    """A judge at work."""

    loaded: LoadedJudge
    settings: ServeSettings
    name: str
    metrics: Metrics
    batcher: Batcher
    marks: Marks
    cohorts: Cohorts
    deadlines: Deadlines
    stopping: bool = False
    taken: int = 0  # requests that are not answered yet

    @property
    def compares(self) -> bool:
        """Whether the judge compares responses, so that one alone has no score."""
        return self.loaded.card.kind in COMPARING


def make_service(loaded: LoadedJudge, settings: ServeSettings, name: str) -> Service:
    """A service whose batcher has not begun."""
    metrics = Metrics()
    return Service(
        loaded,
        settings,
        name,
        metrics,
        Batcher(loaded, settings, metrics),
        marks_of(loaded.dialogue),
        Cohorts(settings.cohort_wait),
        Deadlines(settings.timeout),
    )


async def _of_app(request: Request) -> Service:
    return request.app.state.service


Used = Annotated[Service, Depends(_of_app)]  # a handler's parameter


@dataclass(frozen=True)
class Names:
    """The names of a protocol's fields, for messages about what is wrong."""

    prompt: str = "messages"
    response: str = "responses"


@dataclass
class Judged:
    """The scores of R responses, in their order, and the work that they took."""

    score: list[float]
    log_odds: list[float]
    rank: list[int]
    votes: list[list[float]]
    thoughts: list[list[str]]
    asked: int  # votes of each question
    prefix_tokens: int
    thought_tokens: int
    dropped_turns: int
    seconds: float
    cut_off: int = 0
    extra: dict[str, Any] = field(default_factory=dict)

    def rewards(self, settings: ServeSettings) -> list[float]:
        return self.score if settings.reward == "score" else self.log_odds

    @property
    def usage(self) -> dict:
        """Tokens as OpenAI's API counts them, and votes."""
        read, written = self.prefix_tokens, self.thought_tokens
        tokens = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {**tokens, "votes": self.asked, "thoughts_cut_off": self.cut_off, "seconds": round(self.seconds, 6)}


async def judge(
    service: Service,
    prompt: Sequence[dict[str, str]],
    responses: Sequence[str],
    votes: int | Adaptive | None = None,
    names: Names = Names(),  # noqa: B008, it is frozen
) -> Judged:
    """The scores of responses to a conversation. Refused where there are none."""
    began, settings = time.perf_counter(), service.settings
    votes = settings.votes if votes is None else votes
    if isinstance(votes, int) and votes > settings.largest:
        raise Refused(422, f"{votes} votes; this server gives at most {settings.largest}", "votes")
    if not service.batcher.warm:
        raise Refused(503, service.batcher.failure or "the judge is not ready yet", retry_after=RETRY)
    row = {"prompt": list(prompt), "responses": list(responses)}

    def refusal(error: str) -> Refused:
        return Refused(422, error, field_of(error, names))

    try:
        taken = service.batcher.submit(row, votes, refusal)
        scored = await service.deadlines.wait(taken.future)
    except TimeoutError:
        raise Refused(504, f"no score within {settings.timeout:g} s") from None
    except Refused:
        raise
    except Exception as error:
        raise Refused(500, f"the judge failed: {one_line(error)}") from error
    judged = _judged(taken, scored, time.perf_counter() - began)
    if settings.log:
        said = {"time": time.time(), **row, **{key: scored[key] for key in ("score", "votes", "thoughts")}}
        await asyncio.to_thread(files.append_lines, Path(settings.log), [said])
    return judged


async def judge_all(service: Service, rows: Sequence[tuple[Sequence[dict], str]], names: Names) -> list[Judged]:
    """Scores of single responses, each to its own conversation. The first refusal is that of all."""
    tasks = [asyncio.ensure_future(judge(service, prompt, [response], names=names)) for prompt, response in rows]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def field_of(error: str, names: Names) -> str | None:
    """The field that a row's error is about."""
    about_response = ("response", "empty response", "one response", "consecutive")
    return names.response if error.startswith(about_response) else names.prompt


def _judged(row: Row, scored: dict, seconds: float) -> Judged:
    answers = row.answers.values()
    columns = {key: scored[key] for key in ("score", "log_odds", "rank", "votes", "thoughts")}
    return Judged(
        **columns,
        asked=max(len(answer.values) for answer in answers),
        prefix_tokens=sum(len(question.prefix) for _, question in row.prepared.questions),
        thought_tokens=sum(answer.written for answer in answers),
        dropped_turns=row.prepared.dropped,
        seconds=seconds,
        cut_off=sum(int(answer.cut) for answer in answers),
    )


def intervals(service: Service, judged: Judged, delta: float) -> list[tuple[float, float] | None]:
    """For each response an interval of the score that more votes would give, with probability 1 - delta.

    None for a judge without thoughts, whose score has no chance in it.
    """
    if service.loaded.card.thoughts == "none":
        return [None] * len(judged.score)
    each = np.array(judged.votes)
    if service.loaded.card.kind == "label":
        count = len(each)
        first = each.reshape(count, count - 1, -1)  # i before each of the others
        win = [{} for _ in range(first.shape[-1])]
        for i in range(count):
            for place, j in enumerate(j for j in range(count) if j != i):
                for vote, value in enumerate(first[i, place]):
                    win[vote][i, j] = value
        each = np.stack([voting.against_others(said, count) for said in win], -1)
    return [voting.mean_interval(values, delta) for values in each]


def rule(settings: ServeSettings) -> Adaptive:
    """The rule of votes "auto"."""
    return settings.votes if isinstance(settings.votes, Adaptive) else Adaptive()
