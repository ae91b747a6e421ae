"""Rewards for TRL's trainers: `reward_funcs=reward_func("http://127.0.0.1:8080")`.

`reward_func` asks a server and waits, `async_reward_func` asks it beside TRL's event loop, and `in_process` loads the
judge into the trainer's process. The first two can be pickled, as the asynchronous trainer needs.

A completion that the judge cannot score, such as an empty one, gets None: TRL then takes it out of its group's mean and
does not learn from it. So does a completion for which the server failed, with a warning. Where the server failed for
every completion of a batch, and where the address or the token is wrong, the function raises `JudgeError`.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from dwrl_jax.adapters.client import (
    Alone,
    JudgeError,
    Refused,
    Server,
    Unavailable,
    at_once,
    in_thread,
    judge,
    outcome,
    server,
)
from dwrl_jax.adapters.conversation import question, same

logger = logging.getLogger(__name__)
Questions = list[tuple[list[dict[str, str]], list[str], list[int]]]


def reward_func(
    url: str | None = None, *, votes: int | str | None = None, value: str = "score", compare: bool = False, **settings
) -> Callable[..., list[float | None]]:
    """A reward function that asks the server at `url`, which is $DWRL_JAX_URL if it is left out.

    `votes` is the number of thoughts or "auto", and `value` is "score" or "log_odds". With `compare` the completions of
    a prompt are sent together, as a judge that compares responses needs. `settings` are the fields of `client.Server`.
    """
    return functools.partial(dwrl_judge, server(url, **settings), votes, _checked(value), compare)


def async_reward_func(
    url: str | None = None, *, votes: int | str | None = None, value: str = "score", compare: bool = False, **settings
) -> Callable[..., Any]:
    """The same as a coroutine function, which TRL runs beside its other asynchronous rewards."""
    return functools.partial(dwrl_judge_async, server(url, **settings), votes, _checked(value), compare)


def in_process(
    model, *, votes: int = 8, value: str = "score", batch_size: int = 16, seed: int = 0, **options
) -> Callable[..., list[float | None]]:
    """A reward function with the judge in this process. `model` and `options` are those of `dwrl_jax.judge.load`."""
    from dwrl_jax.judge import load, score  # only here JAX comes into the process
    from dwrl_jax.judge.rows import COMPARING

    _checked(value)
    loaded = load(model, **options)

    def dwrl_judge(prompts, completions, **_) -> list[float | None]:
        asked = _questions(prompts, completions, loaded.card.kind in COMPARING)
        rows = [{"prompt": messages, "responses": responses} for messages, responses, _ in asked]
        scored = score(loaded, rows, votes, seed=seed, batch_size=batch_size)
        answers = [Refused(row["error"]) if "error" in row else row[value] for row in scored]
        return _rewards(asked, answers, len(completions))

    return dwrl_judge


def dwrl_judge(
    at: Server, votes: int | str | None, value: str, compare: bool, /, prompts, completions, **_
) -> list[float | None]:
    """Rewards of completions, as TRL asks for them: all columns of the batch are keywords."""
    asked = _questions(prompts, completions, compare)
    calls = [functools.partial(_ask, at, votes, value, messages, responses) for messages, responses, _ in asked]
    return _rewards(asked, _suited(at_once(at, calls), compare), len(completions))


async def dwrl_judge_async(
    at: Server, votes: int | str | None, value: str, compare: bool, /, prompts, completions, **_
) -> list[float | None]:
    """`dwrl_judge` as a coroutine."""
    asked = _questions(prompts, completions, compare)
    calls = [(_ask, at, votes, value, messages, responses) for messages, responses, _ in asked]
    answers = await asyncio.gather(*(in_thread(at, outcome, *call) for call in calls))
    return _rewards(asked, _suited(answers, compare), len(completions))


def _checked(value: str) -> str:
    if value not in ("score", "log_odds"):
        raise JudgeError(f"value={value!r}: choose score or log_odds")
    return value


def _ask(at: Server, votes, value: str, messages, responses) -> list[float]:
    return judge(at, messages, responses, votes, (value,))[value]


def _questions(prompts: Sequence, completions: Sequence, compare: bool) -> Questions:
    """(messages, responses, their places in the batch): for each completion, or with `compare` for each prompt."""
    asked: dict[Any, tuple[list[dict[str, str]], list[str], list[int]]] = {}
    for place, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        try:
            messages, response = question(prompt, completion)
        except Refused as error:
            logger.info("completion %d of the batch gets no reward: %s", place, error)
            continue
        _, responses, places = asked.setdefault(same(messages) if compare else place, (messages, [], []))
        responses.append(response)
        places.append(place)
    return list(asked.values())


def _suited(answers: Sequence, compare: bool) -> Sequence:
    """The answers. JudgeError if none can ever come, as the judge compares responses and gets them one by one."""
    for error in answers:
        if isinstance(error, Alone) and not compare:
            raise JudgeError(f"{error}; send the completions of a prompt together: reward_func(..., compare=True)")
    return answers


def _rewards(asked: Questions, answers: Sequence, count: int) -> list[float | None]:
    """A reward for each of `count` completions, from the answers to the questions or their errors."""
    rewards: list[float | None] = [None] * count
    for error in answers:
        if isinstance(error, JudgeError) and not isinstance(error, Refused | Unavailable):
            raise error
    failed = [error for error in answers if isinstance(error, Unavailable)]
    if failed and len(failed) == len(answers):
        raise failed[0]
    for (_, _, places), answer in zip(asked, answers):
        if not isinstance(answer, JudgeError):
            for place, reward in zip(places, answer):
                rewards[place] = reward
    missing = [error for error in answers if isinstance(error, JudgeError)]
    if missing:
        logger.warning("%d of %d questions have no reward, the first for: %s", len(missing), len(answers), missing[0])
    return rewards
