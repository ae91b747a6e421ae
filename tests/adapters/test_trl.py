"""Rewards for TRL: one for each completion in its place, and None where there is none."""

import asyncio
import logging
import pickle

import pytest

from dwrl_jax.adapters.client import JudgeError, Unavailable
from dwrl_jax.adapters.trl import async_reward_func, reward_func
from tests.adapters.stub import ALONE, worth

USER = [{"role": "user", "content": "a"}]
PROMPTS = ["a", USER, [{"role": "system", "content": "s"}, *USER], "b", "a"]
COMPLETIONS = [
    "one",
    [{"role": "assistant", "content": "two"}],
    [{"role": "assistant", "content": [{"type": "text", "text": "thr"}, {"type": "image"}, {"text": "ee"}]}],
    "four",
    "five",
]
EXPECTED = [
    worth(USER, "one"),
    worth(USER, "two"),
    worth(PROMPTS[2], "three"),
    worth([{"role": "user", "content": "b"}], "four"),
    worth(USER, "five"),
]
BATCH = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": [[1]] * 5, "trainer_state": None}


def asked(function, **batch):
    """The rewards of a function that TRL calls, be it a coroutine function or not."""
    answer = function(**batch)
    return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer


@pytest.fixture(params=[reward_func, async_reward_func])
def make(request, stub, pauses):
    return lambda **settings: request.param(stub.url, **{"attempts": 2} | settings)


def test_each_completion_gets_its_score(make, stub):
    columns = {"value": [1] * 5, "votes": [2] * 5, "at": [3] * 5}  # names of columns that mean nothing here
    assert asked(make(votes="auto"), **BATCH, **columns) == EXPECTED
    assert len(stub.requests) == 5 and all(body["votes"] == "auto" for _, _, body in stub.requests)
    assert asked(make(value="log_odds"), **BATCH) == [10 * score for score in EXPECTED]


def test_completions_of_a_prompt_are_sent_together(make, stub):
    assert asked(make(compare=True), **BATCH) == EXPECTED
    together = sorted(body["responses"] for _, _, body in stub.requests)
    assert together == [["four"], ["one", "two", "five"], ["three"]]


def test_it_survives_pickling(make, stub):
    """The asynchronous trainer sends the function to another process."""
    assert asked(pickle.loads(pickle.dumps(make(token="sesame"))), **BATCH) == EXPECTED
    assert stub.requests[0][1]["Authorization"] == "Bearer sesame"


def test_none_for_completions_that_cannot_be_scored(make, stub):
    calls = [{"role": "assistant", "content": "I look."}, {"role": "user", "content": "so?"}]
    completions = ["", [{"role": "assistant", "content": None}], calls, "this is too long", "five"]
    rewards = asked(make(), prompts=PROMPTS, completions=completions)
    assert rewards == [None, None, None, None, EXPECTED[4]]
    assert len(stub.requests) == 2
    assert asked(make(), prompts=["a"], completions=[" "]) == [None]


def test_a_turn_of_the_completion_before_its_last_belongs_to_the_conversation(make, stub):
    turns = [
        {"role": "assistant", "content": "who?"},
        {"role": "user", "content": "me"},
        {"role": "assistant", "content": "hi"},
    ]
    assert asked(make(), prompts=["a"], completions=[turns]) == [worth([*USER, *turns[:2]], "hi")]
    assert stub.requests[0][2]["messages"] == [*USER, *turns[:2]]


def test_none_where_the_server_failed_and_an_error_where_it_failed_throughout(make, stub, caplog):
    stub.replies = [(503, {}, "")] * 2
    with caplog.at_level(logging.WARNING):
        rewards = asked(make(connections=1), **BATCH)
    assert rewards == [None, *EXPECTED[1:]] and "1 of 5 questions have no reward" in caplog.text
    stub.always = (503, {}, "")
    with pytest.raises(Unavailable, match="after 2 attempts"):
        asked(make(), **BATCH)


def test_a_judge_that_compares_needs_completions_together(make, stub):
    stub.always = ALONE
    with pytest.raises(JudgeError, match="compare=True"):
        asked(make(), **BATCH)
    assert asked(make(compare=True), prompts=["a"], completions=["the only one"]) == [None]


@pytest.mark.parametrize("status", [401, 404])
def test_a_wrong_token_or_address_is_an_error(make, stub, status):
    stub.replies = [(status, {}, "")]
    with pytest.raises(JudgeError, match=f"status {status}"):
        asked(make(), **BATCH)


def test_a_misspelt_value():
    with pytest.raises(JudgeError, match="value='scores'"):
        reward_func(value="scores")
