"""Exact: short thoughts have the same ids when they are kept as when they are rendered."""

import pytest

from dwrl_jax import dialogue as dg
from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue import dialogue as dialogue_module
from dwrl_jax.dialogue import plain
from tests.dialogue.test_dialogue import WORDS, word_dialogue


def test_short_thoughts_are_rendered_once(monkeypatch):
    dialogue, long, rendered = word_dialogue(), "ok " * 40 + "ok", []
    dg.encode_thought(dialogue, "two")  # renders the skeleton too
    whole = plain.whole
    monkeypatch.setattr(plain, "whole", lambda *args: rendered.append(len(args[1])) or whole(*args))
    for texts, new in (
        (("ok", "ok three", "ok"), [2]),
        (("ok three", "ok"), []),
        (("one", "ok"), [1]),
        ((long, "ok"), [1]),
        ((long, "ok"), [1]),
    ):
        rendered.clear()
        expected = [[*map(WORDS.index, text.split()), WORDS.index("</s>")] for text in texts]
        found = dg.encode_thoughts(dialogue, texts)
        assert found == expected and rendered == new
        found[0].clear()  # what a caller does with its ids does not change the kept ones
    for _ in range(2):
        with pytest.raises(UserError, match="no word 'it'"):
            dg.encode_thoughts(dialogue, ["ok", "ok it"])


def test_only_so_many_thoughts_are_kept(monkeypatch):
    monkeypatch.setattr(dialogue_module, "_MOST", 2)
    dialogue = word_dialogue()
    for texts, kept in ((("ok", "one"), {"ok", "one"}), (("two",), {"ok", "one", "two"}), (("ok", "four"), {"four"})):
        assert [ids[0] for ids in dg.encode_thoughts(dialogue, texts)] == [WORDS.index(text) for text in texts]
        assert dialogue.thoughts.keys() == kept
