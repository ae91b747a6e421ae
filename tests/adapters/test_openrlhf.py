"""A reward for OpenRLHF, from the text that it decodes."""

import json

import pytest

from dwrl_jax.adapters import openrlhf
from dwrl_jax.adapters.client import Alone, JudgeError, Refused, Unavailable, server
from dwrl_jax.adapters.openrlhf import reward_func
from tests.adapters.stub import ALONE, worth

ASKED = [{"role": "user", "content": "a"}]
TEMPLATE = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(autouse=True)
def environment(stub, pauses, monkeypatch):
    monkeypatch.setenv("DWRL_JAX_URL", stub.url)
    for name in ("DWRL_JAX_VOTES", "DWRL_JAX_REFUSED", "DWRL_JAX_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("prompt", "label", "end"),
    [
        ("a", "", ""),
        ("a", None, "</s>"),
        (TEMPLATE, "a", "<|im_end|>"),
        (TEMPLATE, ASKED, "<|im_end|>\n<|endoftext|>"),
        (TEMPLATE, json.dumps(ASKED), "<end_of_turn>\n"),
        (TEMPLATE, json.dumps(ASKED), "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    ],
)
def test_the_reward_of_the_text_behind_the_prompt(stub, monkeypatch, prompt, label, end):
    monkeypatch.setenv("DWRL_JAX_VOTES", "4")
    answer = "x < y and <b>so</b>"
    score = worth(ASKED, answer)
    got = reward_func([f"<s>{prompt}{answer}{end}"], [prompt], [label])
    assert got == {"rewards": [score], "scores": [score], "extra_logs": {}}
    assert stub.requests[0][2] == {"messages": ASKED, "responses": [answer], "votes": 4, "return": ["score"]}


def test_several_and_none():
    queries = [f"a{i}" for i in range(5)]
    assert reward_func(queries, ["a"] * 5, [""] * 5)["rewards"] == [worth(ASKED, str(i)) for i in range(5)]
    assert reward_func([], [], [])["rewards"] == []


def test_failures_raise(stub, monkeypatch):
    with pytest.raises(JudgeError, match="does not have its prompt"):
        reward_func(["the tail of it, one"], ["head and the tail of it, "], [""])
    with pytest.raises(Refused):
        reward_func(["aone", "a</s>"], ["a"] * 2, [""] * 2)
    monkeypatch.setenv("DWRL_JAX_REFUSED", "-2.5")
    assert reward_func(["aone", "a</s>"], ["a"] * 2, [""] * 2)["rewards"] == [worth(ASKED, "one"), -2.5]
    monkeypatch.setattr(openrlhf, "server", lambda: server(attempts=2))
    stub.always = ALONE
    with pytest.raises(Alone):
        reward_func(["aone"], ["a"], [""])
    stub.always = (503, {}, "")
    with pytest.raises(Unavailable):
        reward_func(["aone"], ["a"], [""])
