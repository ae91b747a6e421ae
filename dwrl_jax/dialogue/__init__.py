"""Everything that the judge reads: questions, answer tokens, texts as ids. No other room knows a chat format."""

from dwrl_jax.dialogue.dialogue import (
    Dialogue,
    encode_thought,
    encode_thoughts,
    fingerprint,
    fit_prefixes,
    has_control_token,
    is_refused,
    no_such_word,
    prefix_ids,
    prefix_ids_batch,
    render,
    unknown_word,
)
from dwrl_jax.dialogue.making import make_dialogue
from dwrl_jax.dialogue.plain import CHANGED, CONTROL
from dwrl_jax.dialogue.questions import KEYS, Texts, sides

__all__ = [
    "CHANGED",
    "CONTROL",
    "KEYS",
    "Dialogue",
    "Texts",
    "encode_thought",
    "encode_thoughts",
    "fingerprint",
    "fit_prefixes",
    "has_control_token",
    "is_refused",
    "make_dialogue",
    "no_such_word",
    "prefix_ids",
    "prefix_ids_batch",
    "render",
    "sides",
    "unknown_word",
]
