"""Conversations as frameworks have them, and the messages and the response that a judge reads."""

import json
from typing import Any

from dwrl_jax.adapters.client import Refused


def as_messages(value: Any) -> list[dict[str, str]]:
    """Messages with strings as contents. A string is a user turn. Refused for anything else."""
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    turns = value.tolist() if hasattr(value, "tolist") else value  # a column of a table is an array
    if not isinstance(turns, list | tuple) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Refused(f"a conversation is a string or a list of messages, not {str(value)[:60]!r}")
    return [{"role": str(turn.get("role", "user")), "content": as_text(turn.get("content"))} for turn in turns]


def as_text(content: Any) -> str:
    """The text of a message, whose content is a string or a list of parts. Parts without text add nothing."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = content.tolist() if hasattr(content, "tolist") else content
    return "".join(part.get("text") or "" for part in parts if isinstance(part, dict))


def question(prompt: Any, completion: Any) -> tuple[list[dict[str, str]], str]:
    """The messages before a response, and the response, which is the completion or its last message.

    Refused if the completion says nothing or does not end with the assistant.
    """
    messages, response = as_messages(prompt), completion
    if not isinstance(completion, str):
        *before, last = as_messages(completion)
        if last["role"] != "assistant":
            raise Refused(f"the completion ends with the role {last['role']!r}, not with the assistant")
        messages, response = messages + before, last["content"]
    if not response.strip():
        raise Refused("the completion is empty")
    return messages, response


def same(messages: list[dict[str, str]], *more) -> str:
    """A string that is the same for the same conversation, and for the same `more`."""
    return json.dumps([messages, *more], sort_keys=True)
