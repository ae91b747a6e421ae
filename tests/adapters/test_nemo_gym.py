"""Rewards for NeMo Gym, of a rollout and of all rollouts of a prompt."""

import asyncio

import pytest

from dwrl_jax.adapters import nemo_gym
from dwrl_jax.adapters.client import JudgeError, Refused, Unavailable
from tests.adapters.stub import worth

ASKED = [{"role": "user", "content": "a"}]
PARAMS = {"input": ASKED}


def said(text):
    """An object of the Responses API."""
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    return {"output": [thought, {"type": "message", "content": [{"type": "output_text", "text": text}]}]}


def test_compare(stub):
    got = asyncio.run(nemo_gym.compare(ASKED, [said("one"), said("two")], "be kind", url=stub.url))
    assert got == [worth(ASKED, "one"), worth(ASKED, "two")]
    path, _, body = stub.requests[0]
    assert path == "/compare" and body["principle"] == "be kind" and body["conversation_history"] == ASKED
    stub.replies = [(200, {}, '{"rewards": [1.0]}')]
    with pytest.raises(JudgeError, match="no list 'rewards' of 2"):
        asyncio.run(nemo_gym.compare(ASKED, [said("one"), said("two")], url=stub.url))


@pytest.mark.parametrize(
    ("params", "messages"),
    [
        (PARAMS, ASKED),
        ({"input": "a"}, ASKED),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}]}, ASKED),
        ({"input": "a", "instructions": "s"}, [{"role": "system", "content": "s"}, *ASKED]),
        ({"input": [{"role": "developer", "content": "s"}, *ASKED]}, [{"role": "system", "content": "s"}, *ASKED]),
    ],
)
def test_the_reward_of_a_rollout(stub, params, messages):
    assert asyncio.run(nemo_gym.reward(params, said("one"), url=stub.url)) == worth(messages, "one")
    assert stub.requests[0][2]["responses_create_params"] == {"input": messages}


def test_failures_raise(stub, pauses):
    with pytest.raises(Refused):
        asyncio.run(nemo_gym.reward(PARAMS, {"output": []}, url=stub.url))
    stub.replies = [(200, {}, '{"reward": null}'), (200, {}, '{"reward": NaN}'), (200, {}, "{}")]
    for _ in range(3):
        with pytest.raises(JudgeError, match="must have finite numbers"):
            asyncio.run(nemo_gym.reward(PARAMS, said("one"), url=stub.url))
    stub.always = (503, {}, "")
    with pytest.raises(Unavailable):
        asyncio.run(nemo_gym.reward(PARAMS, said("one"), url=stub.url, attempts=2))
