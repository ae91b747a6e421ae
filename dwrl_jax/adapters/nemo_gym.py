"""Rewards for a resources server of NeMo Gym.

`compare` sends the responses to a prompt together, as NeMo Gym's own `/compare` takes them. `reward` gives the reward
of one rollout, from the body of `/verify`. A judge that compares needs the rollouts of a prompt together: with
`rollouts` above 1 they wait for one another, but not longer than `patience` seconds. Then those that are there are
compared, so that a lost rollout holds up no other.

Every failure raises `JudgeError`, so `/verify` fails, and the rollout gets no neutral reward.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from dwrl_jax.adapters.client import JudgeError, Server, check_list, in_thread, judge, post, server
from dwrl_jax.adapters.conversation import as_messages, as_text, question, same


@dataclasses.dataclass
class Cohort:
    """The rollouts of a prompt that wait for one another, and the rewards that they wait for."""

    responses: list[str] = dataclasses.field(default_factory=list)
    full: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    rewards: asyncio.Task | None = None


_cohorts: dict[tuple[asyncio.AbstractEventLoop, str], Cohort] = {}


async def compare(
    conversation_history: Sequence[dict],
    response_objs: Sequence[dict],
    principle: str | None = None,
    *,
    url: str | None = None,
    **settings,
) -> list[float]:
    """A reward for each response, from the server's `/compare`. Responses are objects of the Responses API."""
    at = server(url, **settings)
    body = {"conversation_history": list(conversation_history), "response_objs": list(response_objs)}
    reply = await in_thread(at, post, at, "/compare", body | {"principle": principle})
    return check_list(at, reply, "rewards", len(response_objs))


async def reward(
    responses_create_params: dict,
    response: dict,
    *,
    rollouts: int = 1,
    patience: float = 300.0,
    cohort: Any = None,
    url: str | None = None,
    votes: int | str | None = None,
    **settings,
) -> float:
    """The reward of a rollout. `cohort`, such as the index of a task, tells the same prompt of two tasks apart."""
    at = server(url, **settings)
    messages, text = question(_history(responses_create_params), output_text(response))
    if rollouts <= 1:
        return (await in_thread(at, judge, at, messages, [text], votes))["score"][0]

    name = asyncio.get_running_loop(), same(messages, cohort, at.url)
    joined = _cohorts.setdefault(name, Cohort())
    place = len(joined.responses)
    joined.responses.append(text)
    if place == 0:
        joined.rewards = asyncio.ensure_future(_together(at, messages, joined, votes, patience, name))
    if len(joined.responses) == rollouts:
        del _cohorts[name]  # the next rollout begins another cohort
        joined.full.set()
    return (await asyncio.shield(joined.rewards))[place]  # a caller that leaves does not stop the others


async def _together(at: Server, messages, cohort: Cohort, votes, patience: float, name) -> list[float]:
    """The rewards of a cohort, once it is full or `patience` seconds have passed."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(cohort.full.wait(), patience)
    if not cohort.full.is_set():
        del _cohorts[name]
    if len(cohort.responses) < 2:
        raise JudgeError(f"a rollout waited {patience} s for the others of its prompt, and none came")
    return (await in_thread(at, judge, at, messages, cohort.responses, votes))["score"]


def output_text(response: dict) -> str:
    """The text of a response, without its reasoning."""
    items = response.get("output") if isinstance(response, dict) else None
    return "".join(as_text(item.get("content")) for item in items or [] if item.get("type", "message") == "message")


def _history(params: dict) -> list[dict[str, str]]:
    """The messages that the response answers. `instructions` and turns of a developer are a system's."""
    said = as_messages(params.get("input"))
    turns = [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in said]
    instructions = params.get("instructions")
    return [{"role": "system", "content": instructions}, *turns] if instructions else turns
