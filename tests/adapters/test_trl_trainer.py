"""Smoke: TRL's own GRPOTrainer takes two steps with rewards of a judge, over HTTP and in its process."""

import dataclasses
import math

import pytest

pytest.importorskip("trl", reason="TRL is not installed: pip install -e '.[test-trl]'")
torch = pytest.importorskip("torch")

from datasets import Dataset  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

from dwrl_jax.adapters.client import JudgeError  # noqa: E402
from dwrl_jax.adapters.trl import async_reward_func, in_process, reward_func  # noqa: E402
from dwrl_jax.data import world  # noqa: E402
from tests.adapters.stub import worth  # noqa: E402
from tests.judge.exports import export  # noqa: E402
from tests.judge.test_score import CARD  # noqa: E402

PROMPTS = [[{"role": "user", "content": text}] for text in ("s1 o1 o2 o3 o4 o5", "s2 o1 o2 o3 o4 o5")]


def make_trainer(folder, *rewards):
    """A trainer of a random model of the world's words, and its parameters before training."""
    tokenizer = world.make_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **tokens))
    config = GRPOConfig(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        learning_rate=1e-2,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    trainer = GRPOTrainer(model, list(rewards), args=config, train_dataset=data, processing_class=tokenizer)
    return trainer, [parameter.detach().clone() for parameter in model.parameters()]


def took_two_steps(trainer, before) -> bool:
    moved = any(not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters()))
    return trainer.state.global_step == 2 and moved


def test_rewards_over_http(stub, tmp_path):
    trainer, before = make_trainer(tmp_path, reward_func(stub.url, votes=4), async_reward_func(stub.url, votes=4))
    trainer.train()
    assert took_two_steps(trainer, before)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2 and len(stub.requests) == 16
    for row in logged:
        assert math.isclose(row["rewards/dwrl_judge/mean"], row["rewards/dwrl_judge_async/mean"])
    asked = [(body["messages"], *body["responses"]) for _, _, body in stub.requests]
    expected = sum(worth(*question) for question in asked[8:]) / 8
    assert math.isclose(logged[1]["rewards/dwrl_judge/mean"], expected, rel_tol=1e-5)
    assert all(body["votes"] == 4 for _, _, body in stub.requests)


def test_a_completion_without_a_score_moves_nothing(stub, tmp_path):
    """TRL takes None for what it is: neither 0 nor a part of the mean."""
    stub.replies = [(422, {}, "no")] * 4
    trainer, _ = make_trainer(tmp_path, reward_func(stub.url))
    trainer.args.max_steps = 1
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["reward"] is None and logged["grad_norm"] == 0


def test_a_failing_server_stops_training(stub, pauses, tmp_path):
    stub.always = (503, {}, "")
    trainer, _ = make_trainer(tmp_path, reward_func(stub.url, attempts=2))
    with pytest.raises(JudgeError, match="no score after 2 attempts"):
        trainer.train()


def test_rewards_in_process(tmp_path):
    card = dataclasses.replace(CARD, max_thought=4, buckets=(32,))
    judge = in_process(export(tmp_path / "judge", card), votes=2, batch_size=4)
    seen = []

    def dwrl_judge(prompts, completions, **columns):
        seen.append((judge(prompts=prompts, completions=completions, **columns), completions))
        return seen[-1][0]

    trainer, before = make_trainer(tmp_path / "run", dwrl_judge)
    trainer.train()
    rewards = [reward for step, _ in seen for reward in step]
    assert took_two_steps(trainer, before) and len(seen) == 2
    assert all(reward is None or 0 < reward < 1 for reward in rewards) and len({*rewards}) > 2
