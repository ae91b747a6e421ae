"""A score for verl's reward loop. Every failure is an exception, since verl has no other way to say it."""

import asyncio
import inspect

import pytest

from dwrl_jax.adapters.client import Alone, JudgeError, Refused, Unavailable
from dwrl_jax.adapters.verl import compute_score
from tests.adapters.stub import ALONE, worth

ASKED = [{"role": "user", "content": "a"}]


@pytest.fixture
def score(stub, pauses):
    def ask(response="one", extra_info=None, **settings):
        asked = {"data_source": "d", "solution_str": response, "ground_truth": None, "url": stub.url, "attempts": 2}
        return asyncio.run(compute_score(extra_info=extra_info or {"prompt": "a"}, **asked, **settings))

    return ask


@pytest.mark.parametrize(
    "given", [{"prompt": "a"}, {"question": "a"}, {"messages": ASKED, "prompt": "not this"}, {"mine": ASKED}]
)
def test_the_score_of_a_response_to_the_conversation_in_extra_info(score, stub, given):
    settings = {"prompt_key": "mine"} if "mine" in given else {}
    router = {"reward_router_address": "127.0.0.1:1", "reward_model_tokenizer": object()}
    assert score(extra_info=given, votes=4, **settings, **router) == {"score": worth(ASKED, "one"), "refused": 0.0}
    assert stub.requests[0][2]["votes"] == 4


def test_log_odds(score):
    assert score(value="log_odds")["score"] == 10 * worth(ASKED, "one")
    with pytest.raises(JudgeError, match="value='odds'"):
        score(value="odds")


def test_no_conversation(score):
    with pytest.raises(JudgeError, match="extra_info has no messages or prompt or question"):
        score(extra_info={"index": 3})


def test_failures_raise(score, stub):
    with pytest.raises(Refused, match="empty"):
        score(" ")
    with pytest.raises(Refused, match="status 422: .*too long"):
        score("too long")
    assert score(" ", refused=-1.0) == {"score": -1.0, "refused": 1.0} == score("too long", refused=-1.0)
    stub.always = ALONE
    with pytest.raises(Alone):
        score(refused=-1.0)
    stub.always = (503, {}, "stopping")
    with pytest.raises(Unavailable):
        score(refused=-1.0)
    stub.always = (200, {}, '{"score": [NaN]}')
    with pytest.raises(JudgeError, match="finite"):
        score(refused=-1.0)


def test_verl_sees_a_coroutine_function():
    """verl asks this to choose between awaiting it and running it in a thread."""
    assert inspect.iscoroutinefunction(compute_score)
