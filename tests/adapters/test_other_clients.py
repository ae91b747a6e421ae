"""Smoke: the code of verl and of OpenRLHF that calls a reward, with our adapters and our protocols behind it."""

import asyncio
import types

import numpy as np
import pytest

from dwrl_jax.adapters import openrlhf as adapter
from dwrl_jax.adapters.client import JudgeError
from dwrl_jax.data import world
from tests.adapters.stub import worth

TEXT = "s1 o1 o2"
ASKED = [{"role": "user", "content": TEXT}]


@pytest.fixture
def verl():
    pytest.importorskip("verl", reason="verl is not installed: pip install --no-deps verl, and what it imports")
    import omegaconf
    import verl.experimental.reward_loop  # noqa: F401
    from verl.trainer.ppo.reward import get_custom_reward_fn

    def make(url, **more):
        function = {
            "path": "pkg://dwrl_jax.adapters.verl",
            "name": "compute_score",
            "reward_kwargs": {"url": url, "votes": 4, "attempts": 2, **more},
        }
        config = omegaconf.OmegaConf.create({"reward": {"custom_reward_function": function}})
        return config, get_custom_reward_fn(config)

    return make


def rollout(text):
    """A response of a rollout, as verl's reward loop gets it."""
    import torch
    from verl import DataProto

    ids = world.make_tokenizer()(text, add_special_tokens=False)["input_ids"]
    tensors = {"responses": torch.tensor([[*ids, 0]]), "attention_mask": torch.tensor([[1, 1] + [1] * len(ids) + [0]])}
    columns = {"data_source": "world", "reward_model": {"ground_truth": ""}, "extra_info": {"prompt": TEXT}}
    arrays = {name: np.array([value], dtype=object) for name, value in columns.items()}
    return DataProto.from_dict(tensors=tensors, non_tensors=arrays)


def test_verl_s_reward_loop(verl, stub, pauses):
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

    async def run(url, text, **more):
        config, function = verl(url, **more)
        return await NaiveRewardManager(config, world.make_tokenizer(), function).run_single(rollout(text))

    got = asyncio.run(run(stub.url, "s2 warm"))
    score = worth(ASKED, "s2 warm")
    assert got == {"reward_score": score, "reward_extra_info": {"score": score, "refused": 0.0}}
    assert stub.requests[0][2]["votes"] == 4
    stub.always = (503, {}, "")
    with pytest.raises(JudgeError, match="after 2 attempts"):
        asyncio.run(run(stub.url, "s2 warm"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl_s_own_client_of_reward_models(verl, stub, engine):
    """It reads a reward from a server in the form of vLLM's /classify or SGLang's /v1/embeddings."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    worker = object.__new__(RewardLoopWorker)
    rollout_config = types.SimpleNamespace(name=engine)
    reward_model = types.SimpleNamespace(rollout=rollout_config, model_path="judge")
    worker.config = types.SimpleNamespace(reward=types.SimpleNamespace(reward_model=reward_model))
    worker.reward_router_address = stub.url.removeprefix("http://")
    worker.input_tokenizer = worker.reward_model_tokenizer = world.make_tokenizer()
    data = rollout("s2 warm")
    data.non_tensor_batch["raw_prompt"] = np.array([None], dtype=object)
    data.non_tensor_batch["raw_prompt"][0] = ASKED
    got = asyncio.run(worker.compute_score_disrm(data))
    assert isinstance(got["reward_score"], float)
    path, _, body = stub.requests[0]
    assert path == {"vllm": "/classify", "sglang": "/v1/embeddings"}[engine] and TEXT in body["input"]


class Engine:
    """A policy that says one thing."""

    def __init__(self, text):
        self.ids = world.make_tokenizer()(text, add_special_tokens=False)["input_ids"]

    async def generate(self, *_, **__):
        said = types.SimpleNamespace(token_ids=self.ids, finish_reason="stop", logprobs=None)
        return types.SimpleNamespace(outputs=[said])


@pytest.mark.parametrize("by", ["file", "address"])
def test_openrlhf_s_executor(stub, pauses, monkeypatch, by):
    agent = pytest.importorskip(
        "openrlhf.utils.agent", reason="OpenRLHF is not installed: pip install --no-deps openrlhf"
    )
    monkeypatch.setenv("DWRL_JAX_URL", stub.url)
    executor = agent.SingleTurnAgentExecutor(adapter.__file__ if by == "file" else f"{stub.url}/get_reward")
    sampling = types.SimpleNamespace(max_tokens=8, logprobs=None)
    tokenizer = world.make_tokenizer()

    async def run():
        end = " <end>" if by == "file" else ""
        return await executor.execute(TEXT, TEXT, sampling, 64, tokenizer, Engine(f"s2 warm{end}"))

    got = asyncio.run(run())
    path, _, body = stub.requests[0]
    if by == "file":
        assert path == "/v1/judge" and body["messages"] == ASKED and body["responses"] == [" s2 warm"]
        assert got["reward"] == got["scores"] == [worth(ASKED, " s2 warm")]
        stub.always = (401, {}, "")
        assert asyncio.run(run())["reward"] is None  # which stops OpenRLHF's training at this batch
    else:
        assert path == "/get_reward" and body == {"query": [f"{TEXT} s2 warm"], "prompts": [TEXT], "labels": [TEXT]}
        assert got["reward"] == got["scores"] == [worth(ASKED, " s2 warm")]
