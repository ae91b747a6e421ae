"""Chatbot Arena: two whole conversations, or a prompt and two responses, and which model won.

Source: the cards of lmsys/chatbot_arena_conversations (conversation_a, conversation_b, winner) and of
lmarena-ai/arena-human-preference-55k (prompt, response_a, response_b as JSON lists of turns, winner_model_a, ...).
"""

import json

from dwrl_jax.data.formats import Format, Malformed
from dwrl_jax.data.formats.parts.conversation import make_pair

CONVERSATIONS = ("conversation_a", "conversation_b")
TURNS = ("prompt", "response_a", "response_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")


def has(columns) -> bool:
    """Whether a row has two conversations and a winner, or two responses and a column for each winner."""
    return {"winner", *CONVERSATIONS} <= set(columns) or {*TURNS, *WINNERS} <= set(columns)


def pairs(row):
    """The row's single pair. Raises Malformed."""
    if "winner" in row and CONVERSATIONS[0] in row:
        won = str(row["winner"]).lower()
        better = {"model_a": 0, "model_b": 1, "a": 0, "b": 1}.get(won)
        tie = won.startswith(("tie", "both", "neither"))
        sides = [row[name] for name in CONVERSATIONS]
    else:
        won = next((name for name in WINNERS if str(row[name]) in ("1", "1.0", "True", "true")), "")
        better = {"winner_model_a": 0, "winner_model_b": 1}.get(won)
        tie = won == "winner_tie"
        asked, *replies = ([text or "" for text in _list(row[name])] for name in TURNS)
        sides = [_conversation(asked, replied) for replied in replies]
    if better is None:
        raise Malformed("tie" if tie else "no label")
    yield make_pair(row, prompt=None, chosen=sides[better], rejected=sides[1 - better], source=row.get("category"))


def _list(value) -> list:
    return json.loads(value) if isinstance(value, str) else value


def _conversation(asked, replied) -> list[dict[str, str]]:
    turns = zip(("user", "assistant") * len(asked), (text for both in zip(asked, replied) for text in both))
    return [{"role": role, "content": text} for role, text in turns]


FORMAT = Format(
    columns="conversation_a, conversation_b, winner",
    has=has,
    pairs=pairs,
    uses=lambda columns: {*CONVERSATIONS, *TURNS, *WINNERS, "winner"},
)
