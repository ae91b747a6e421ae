"""Turns of a conversation, as `role` and `content`, from the layouts that people write them in."""

import ast
import json

from dwrl_jax.data.formats import Malformed

ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "system": "system",
    "developer": "system",
}
PLAIN = ("user", "assistant", "system")
TOOL_ROLES = ("tool", "function", "function_call", "function_response", "observation", "ipython", "tool_call")
# keys of a turn that change what it says, and that the judge would not see
UNSEEN = {
    "tool_calls": "tool calls",
    "function_call": "tool calls",
    "tool_call_id": "tool turn",
    "reasoning_content": "reasoning_content",
    "reasoning": "reasoning_content",
    "thinking": "reasoning_content",
    "images": "images",
    "image": "images",
    "audio": "audio",
    "audios": "audio",
    "video": "video",
    "videos": "video",
}
READ = frozenset({"role", "from", "content", "value", *UNSEEN})  # the keys of a turn that are used or refused


def messages(value, role: str) -> list[dict[str, str]]:
    """The turns of a column, each with `role` and `content`. A string is a single turn of `role`.

    A list of messages may be written as a string, as in CSV files. An empty system turn in front is dropped. Raises
    Malformed.
    """
    if isinstance(value, str):
        value = _written(value)
        if isinstance(value, str):
            return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise Malformed("not a string or message list")
    turns = [_turn(turn) for turn in value]
    return turns[1:] if turns[0]["role"] == "system" and not turns[0]["content"].strip() else turns


def _turn(turn) -> dict[str, str]:
    role, content = turn.get("role"), turn.get("content")
    if len(turn) == 2 and type(content) is str and role in PLAIN:
        return turn
    role = turn.get("from") if role is None else role
    content = turn.get("value") if content is None else content
    if not isinstance(role, str):
        raise Malformed("not a string or message list")
    for key, reason in UNSEEN.items():
        if turn.get(key):
            raise Malformed(reason)
    if role.lower() in TOOL_ROLES:
        raise Malformed("tool turn")
    if isinstance(content, list):
        content = _text(content)
    if content is None:
        raise Malformed("content is null")
    if not isinstance(content, str):
        raise Malformed("not a string or message list")
    return {"role": ROLES.get(role.lower(), role), "content": content}


def _text(parts) -> str:
    """The text of a list of content parts, a line each. Raises Malformed for a part that is not text."""
    texts = []
    for part in parts:
        if isinstance(part, dict):
            kind = part.get("type", "text")
            part = part.get("text")
            if kind not in ("text", "input_text", "output_text"):
                raise Malformed(f"{str(kind)[:20]} in content")
        if not isinstance(part, str):
            raise Malformed("not a string or message list")
        texts.append(part)
    return "\n".join(texts)


def _written(text: str):
    """The messages that a string lists in JSON or as a Python literal; the string itself if it lists none."""
    start = text.lstrip()[:2]
    if start not in ("[{", "[\n", '{"', "{'") or not any(
        f"{q}{key}{q}" in text for q in "\"'" for key in ("role", "from")
    ):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
        turns = value if isinstance(value, list) else [value]
        if turns and all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in turns):
            return value
    return text
