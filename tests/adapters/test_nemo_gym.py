"""Rewards for NeMo Gym: alone, compared, and in cohorts that do not wait for ever."""

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
    assert asyncio.run(nemo_gym.reward(params, said("one"), url=stub.url, votes=2)) == worth(messages, "one")
    assert stub.requests[0][2]["messages"] == messages


def test_failures_raise(stub, pauses):
    with pytest.raises(Refused):
        asyncio.run(nemo_gym.reward(PARAMS, {"output": []}, url=stub.url))
    stub.always = (503, {}, "")
    with pytest.raises(Unavailable):
        asyncio.run(nemo_gym.reward(PARAMS, said("one"), url=stub.url, attempts=2))


def cohort(stub, *rollouts, size=3, patience=10.0):
    """The rewards of rollouts (text, cohort) that come at the same time, or their errors."""

    async def run():
        settings = {"rollouts": size, "patience": patience, "url": stub.url, "attempts": 2}
        calls = [nemo_gym.reward(PARAMS, said(text), cohort=name, **settings) for text, name in rollouts]
        return await asyncio.gather(*calls, return_exceptions=True)

    return asyncio.run(run())


def test_rollouts_of_a_prompt_are_compared_together(stub):
    texts = ["one", "two", "three", "four", "five", "six"]
    got = cohort(stub, *((text, i % 2) for i, text in enumerate(texts)))
    assert got == [worth(ASKED, text) for text in texts]
    assert sorted(body["responses"] for _, _, body in stub.requests) == [
        ["one", "three", "five"],
        ["two", "four", "six"],
    ]
    assert not nemo_gym._cohorts


def test_a_full_cohort_makes_room_for_the_next(stub):
    got = cohort(stub, ("one", 0), ("two", 0), ("three", 0), ("four", 0), ("five", 0), ("six", 0))
    assert got[5] == worth(ASKED, "six") and len(stub.requests) == 2 and not nemo_gym._cohorts


def test_a_lost_rollout_holds_up_no_other(stub):
    assert cohort(stub, ("one", 0), ("two", 0), patience=0.05) == [worth(ASKED, "one"), worth(ASKED, "two")]
    (alone,) = cohort(stub, ("one", 0), patience=0.05)
    assert isinstance(alone, JudgeError) and "none came" in str(alone)
    assert not nemo_gym._cohorts


def test_a_failure_reaches_every_rollout(stub, pauses):
    stub.always = (503, {}, "")
    assert [type(error) for error in cohort(stub, ("one", 0), ("two", 0), size=2)] == [Unavailable] * 2
    assert not nemo_gym._cohorts


def test_a_caller_that_leaves_does_not_stop_the_others(stub):
    async def run():
        settings = {"rollouts": 2, "url": stub.url}
        leaver = asyncio.ensure_future(nemo_gym.reward(PARAMS, said("one"), **settings))
        await asyncio.sleep(0)
        leaver.cancel()
        return await nemo_gym.reward(PARAMS, said("two"), **settings)

    assert asyncio.run(run()) == worth(ASKED, "two")
