"""Rewards for a resources server of NeMo Gym.

`compare` sends the responses to a prompt together, as NeMo Gym's own `/compare` takes them. `reward` gives the reward
of one rollout, from the body of `/verify`. A judge that compares needs the rollouts of a prompt together: then its
server, started with `--cohort`, lets them wait for one another, but not for ever.

Every failure raises `JudgeError`, so `/verify` fails, and the rollout gets no neutral reward.
"""

from collections.abc import Sequence

from dwrl_jax.adapters.client import check_list, in_thread, post, server
from dwrl_jax.adapters.conversation import as_messages, as_text, question


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


async def reward(responses_create_params: dict, response: dict, *, url: str | None = None, **settings) -> float:
    """The reward of a rollout, from the server's `/verify`. The reasoning in the response is not judged."""
    at = server(url, **settings)
    messages, text = question(_history(responses_create_params), output_text(response))
    body = {"responses_create_params": {"input": messages}, "response": {"output": [{"content": text}]}}
    reply = await in_thread(at, post, at, "/verify", body)
    return check_list(at, {"reward": [reply.get("reward")]}, "reward", 1)[0]


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
