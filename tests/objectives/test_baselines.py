"""Exact: the baselines' losses against enumerated ones and against their definitions; smoke: a run of each."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax import objectives
from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import Logps, ThoughtBatch, Verdicts
from dwrl_jax.data import world
from dwrl_jax.dialogue import Texts, make_dialogue, prefix_ids
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import logps, rewards
from dwrl_jax.judge.thoughts import no_thoughts, sample
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, logits, output_table
from dwrl_jax.objectives import bt, bt_token, dwrl, dwrl_no_misalignment, grpo_point, irpm_auc
from dwrl_jax.training import loop
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.workdir import model as export
from tests.objectives.test_objective import random_logps, toy_logps, toy_params, toy_thoughts
from tests.runs import assert_same_run, call, fit, lines, params_of
from tests.small import assert_trees_close, make_batch, make_judge
from tests.training.test_train_step import OPTIONS


@pytest.mark.parametrize("updates", ["joint", "alternating"])
def test_without_the_misalignment_weight_the_margin_itself_is_raised(updates):
    """The group is the whole thought space: the gradient is that of log p- - log p+, and not DWRL's."""
    counts = np.array([4, 2, 1, 1])  # each thought as often as its probability says
    params = toy_params(4) | {"policy": jnp.log(jnp.asarray([counts, counts], jnp.float32))}
    group = jnp.asarray(np.repeat(np.arange(4), counts))
    groups = jnp.stack([group, group])[None]

    def exact(params):
        log_pi, log_s = jax.nn.log_softmax(params["policy"], -1), jax.nn.log_sigmoid(params["score"])
        log_p = jax.nn.logsumexp(log_pi + log_s, -1)
        return log_p[1] - log_p[0]

    def surrogate(params):
        found = toy_logps(params, groups)
        phases = dwrl_no_misalignment.phases(dwrl.Hyper(updates=updates, baseline="none"))
        return sum(f(found, toy_thoughts(found))[0].sum() for f in phases.values())

    assert_trees_close(jax.grad(surrogate)(params), jax.grad(exact)(params), 1e-6)


def toy_writings(params, groups):
    """Logps and thoughts of groups [B S G] of writings: one of M one-token thoughts, then good, bad or another token,
    under tabular log-probabilities policy [S M] and verdict [S M 3]."""
    sides = jnp.arange(2)[:, None]
    thought, verdict = groups // 3, groups % 3
    log_pi, log_verdict = (jax.nn.log_softmax(params[name], -1) for name in ("policy", "verdict"))
    found = Logps(
        thought=log_pi[sides, thought][..., None],
        answer=log_verdict[sides, thought, 0],
        answer_mass=jnp.exp(log_verdict[..., :2]).sum(-1)[sides, thought],
        entropy=jnp.zeros((*groups.shape, 1)),
        verdict=log_verdict[sides, thought, verdict],
    )
    old, old_verdict = jax.lax.stop_gradient((found.thought, found.verdict))
    ones = jnp.ones(groups.shape, jnp.int32)
    verdicts = Verdicts(verdict, old_verdict, right=verdict == sides, well_formed=verdict < 2)
    return found, ThoughtBatch(ones[..., None], ones, old, verdict=verdicts)


def test_grpo_in_expectation_raises_the_probability_of_a_right_verdict():
    """Over all groups of two writings: a standardised difference of two rewards has exactly that gradient.

    p is the probability of a right verdict. A group teaches where one of two is right, with probability 2 p (1 - p)
    and advantages of 1 and -1, and E[grad log pi | right] - E[grad log pi | wrong] = grad p / (p (1 - p)).
    """
    rng = np.random.default_rng(0)
    shapes = {"policy": (2, 3), "verdict": (2, 3, 3)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}

    def right(params):
        pi, verdict = (jax.nn.softmax(params[name], -1) for name in ("policy", "verdict"))
        sides = jnp.arange(2)
        return (pi * verdict[sides, :, sides]).sum()  # good about y+ and bad about y-

    one = np.array(list(itertools.product(range(9), repeat=2)))
    groups = jnp.asarray(np.stack([np.repeat(one, len(one), 0), np.tile(one, (len(one), 1))], 1))
    log_pi, log_verdict = (np.asarray(jax.nn.log_softmax(params[name], -1)) for name in ("policy", "verdict"))
    writing = np.exp(log_pi[..., None] + log_verdict).reshape(2, 9)
    weight = np.prod([writing[side][groups[:, side]].prod(1) for side in (0, 1)], 0)
    assert weight.sum() == pytest.approx(1, abs=1e-5)

    def surrogate(params):
        losses, _ = grpo_point.grpo_loss(*toy_writings(params, groups), grpo_point.Hyper())
        return (losses * weight).sum()

    expected = jax.tree.map(jnp.negative, jax.grad(right)(params))
    assert_trees_close(jax.jit(jax.grad(surrogate))(params), expected, 1e-5)


def test_grpo_in_numbers():
    reward = jnp.asarray([[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    found = grpo_point.group_advantage(reward)
    np.testing.assert_allclose(found[0, 0], [3**0.5, *[-(3**-0.5)] * 3], rtol=1e-5)
    assert not found[0, 1].any()  # equal rewards teach nothing
    params = toy_params(2) | {"verdict": jnp.zeros((2, 2, 3))}
    _, metrics = grpo_point.grpo_loss(*toy_writings(params, jnp.asarray([[[0, 0], [1, 2]]])), grpo_point.Hyper())
    assert metrics["reward"] == 0.75 and metrics["equal_rewards"] == 0.5


def test_the_verdict_is_one_more_token():
    """Ratio, clipping, mean over tokens and KL count it as the last token of the thought."""
    found, thoughts = random_logps()
    rng = np.random.default_rng(5)
    verdict, old, ref = (jnp.asarray(-rng.exponential(size=(3, 2, 4))) for _ in range(3))
    right = jnp.asarray(rng.random((3, 2, 4)) < 0.5)
    verdicts = Verdicts(jnp.zeros(right.shape, int), old, right=right, well_formed=right, ref_logp=ref)
    apart = thoughts.replace(verdict=verdicts, ref_logp=found.thought + 0.1)
    place = jnp.arange(6) == thoughts.thought_len[..., None]

    def appended(x, last):
        return jnp.where(place, last[..., None], jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)))

    joined = ThoughtBatch(
        thought=jnp.zeros(place.shape, int),
        thought_len=thoughts.thought_len + 1,
        old_logp=appended(apart.old_logp, old),
        ref_logp=appended(apart.ref_logp, ref),
    )
    for aggregation in ("sum", "mean"):
        hyper = grpo_point.Hyper(token_aggregation=aggregation, kl=0.1)
        losses, _ = grpo_point.grpo_loss(found.replace(verdict=verdict), apart, hyper)
        advantage = grpo_point.group_advantage(right.astype(jnp.float32)) / 4
        whole = found.replace(thought=appended(found.thought, verdict), entropy=jnp.zeros(place.shape))
        expected, _ = grpo_point.policy_loss(whole, joined, advantage, hyper)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_wins_over_the_other_group_in_numbers():
    score = jnp.log(jnp.asarray([[[0.9, 0.5, 0.1], [0.5, 0.2, 0.95]]]))
    chosen, rejected = irpm_auc.wins_over_the_other(score)[0]
    np.testing.assert_allclose(chosen, [2 / 3, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(rejected, [0.5, 2 / 3, 0], rtol=1e-6)


def test_irpm_auc_in_expectation_prefers_the_thought_that_separates():
    """Over all groups of two: of two thoughts that some opposite score tells apart, the better one gains what the
    other loses; better is a high score about y+ and a low one about y-."""
    params = toy_params(4, seed=2)
    pi, log_s = jax.nn.softmax(params["policy"], -1), np.asarray(jax.nn.log_sigmoid(params["score"]))
    pairs = list(itertools.product(range(4), repeat=2))
    groups = np.array(list(itertools.product(pairs, pairs)))
    weight = np.prod([np.asarray(pi)[side][groups[:, side]].prod(1) for side in (0, 1)], 0)

    def surrogate(params):
        found = toy_logps(params, jnp.asarray(groups))
        return (irpm_auc.auc_loss(found, toy_thoughts(found), irpm_auc.Hyper())[0] * weight).sum()

    expected = np.zeros((2, 4))  # gradient for log pi, before its normalisation
    for group, probability in zip(groups, weight):
        for side, sign in ((0, 1), (1, -1)):
            own, others = log_s[side][group[side]], log_s[1 - side][group[1 - side]]
            apart = ((others >= own.min()) & (others <= own.max())).any() and own[0] != own[1]
            better = int(np.argmax(sign * own))
            expected[side, group[side][better]] -= 0.5 * probability * apart
            expected[side, group[side][1 - better]] += 0.5 * probability * apart
    found = jax.jit(jax.grad(surrogate))(params)
    assert_trees_close(found["policy"], jnp.asarray(expected, jnp.float32), 1e-4)  # its entries sum to zero already
    assert not found["score"].any()  # the answer has no gradient


def test_verdicts_are_drawn_from_the_whole_vocabulary():
    judge, params = make_judge(vocab_size=8, sharpness=1.0)
    batch = make_batch(pairs=2, length=6, vocab_size=8)
    options = SamplerOptions(group_size=512, max_thought=2)
    thoughts, log_scores, _ = jax.jit(lambda: sample(judge, options, params, batch, jax.random.key(0), verdicts=True))()
    found = jax.jit(lambda: logps(judge, params, batch, thoughts))()
    np.testing.assert_allclose(found.verdict, thoughts.verdict.old_logp, atol=1e-5)
    token, right = np.asarray(thoughts.verdict.token), np.asarray(thoughts.verdict.right)
    place = np.where(token == judge.answers[0], 0, np.where(token == judge.answers[1], 1, -1))
    np.testing.assert_array_equal(thoughts.verdict.place, place)
    np.testing.assert_array_equal(right, token == np.array(judge.answers)[:, None])
    probability = np.exp(log_scores).mean(-1)  # of the first answer, over the drawn thoughts
    share = (token == judge.answers[0]).mean(-1)
    assert (np.abs(share - probability) < 4 * np.sqrt(probability / 512)).all() and len(np.unique(token)) > 2


def test_bradley_terry_in_numbers():
    score = jnp.asarray([[[0.2, 0.6], [0.1, 0.1]]])
    found, thoughts = random_logps(shape=(1, 2, 2, 5))
    (loss,) = bt_token.phases(bt_token.Hyper()).values()
    losses, metrics = loss(found.replace(answer=jnp.log(score)), thoughts)
    assert float(losses[0]) == pytest.approx(-np.log(0.4 / 0.5), rel=1e-6)
    assert metrics["pair_accuracy"] == 1
    gradient = jax.grad(lambda a: loss(found.replace(answer=a), thoughts)[0].sum())
    score_step = jax.grad(lambda a: dwrl.score_loss(found.replace(answer=a), thoughts)[0].sum())
    np.testing.assert_allclose(gradient(found.answer), score_step(found.answer), atol=1e-6)


def test_reward_loss_in_numbers():
    found, thoughts = random_logps(shape=(2, 2, 1, 1))
    reward = jnp.asarray([[2.0, 1.0], [-1.0, 3.0]])
    losses, metrics = bt.reward_loss(found.replace(answer=reward[..., None]), thoughts, bt.Hyper(centring=0.1))
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-1)) + 0.9, np.log1p(np.exp(4)) + 0.4], rtol=1e-6)
    assert metrics["pair_accuracy"].tolist() == [1, 0]


def flat_hidden(judge, params, ids):
    """Hidden states of one sequence by itself."""
    tokens = jnp.asarray(ids)[None, None]
    return judge.model.apply(params, tokens, jnp.arange(len(ids))[None, None])[0][0, 0]


def test_no_thought_is_the_end_token_alone():
    judge, params = make_judge()
    batch = make_batch()
    found = logps(judge, params, batch, no_thoughts(batch, judge.end))
    for b, s in np.ndindex(3, 2):
        ids = [*np.asarray(batch.prefix[b, s, : batch.prefix_len[b, s]]), *judge.question]
        expected = jax.nn.log_softmax(logits(flat_hidden(judge, params, ids)[-1], output_table(params)))
        assert float(found.answer[b, s, 0]) == pytest.approx(float(expected[judge.answers[0]]), abs=1e-5)


def scalar_judge(**options):
    judge, params = make_judge(kind="reward", **options)
    shape = dataclasses.replace(judge.model.config, value_head=1)
    return dataclasses.replace(judge, model=Decoder(shape)), hf.with_value_head(params, shape, 0)


def test_a_reward_is_read_at_the_last_token():
    judge, params = scalar_judge()
    batch = make_batch()
    found = logps(judge, params, batch, no_thoughts(batch, judge.end))
    for b, s in np.ndindex(3, 2):
        hidden = flat_hidden(judge, params, np.asarray(batch.prefix[b, s, : batch.prefix_len[b, s]]))
        expected = float(params["params"]["value_head"][0] @ hidden[-1])
        assert float(found.answer[b, s, 0]) == pytest.approx(expected, abs=1e-5)


def test_a_fresh_value_head():
    config = dataclasses.replace(model_config(shrink(PRESETS["llama3.1-8b"], 24)), value_head=1, hidden_size=4096)
    old = {"params": {"lm_head": jnp.zeros(1), "norm": jnp.ones(1)}}
    one, same, other, double = (hf.with_value_head(old, config, *a)["params"] for a in ((0,), (0,), (1,), (0, 2.0)))
    assert one.keys() == {"norm", "value_head"} and one["value_head"].shape == (1, 4096)
    np.testing.assert_array_equal(one["value_head"], same["value_head"])
    np.testing.assert_allclose(double["value_head"], 2 * one["value_head"])
    assert float(jnp.abs(one["value_head"] - other["value_head"]).max()) > 0.01
    assert float(one["value_head"].std()) == pytest.approx(1 / 64, rel=0.05)


def test_the_value_head_has_a_learning_rate_of_its_own():
    params = {"kernel": jnp.ones(2), "value_head": jnp.ones((1, 2))}
    grads = jax.tree.map(lambda x: 0.1 * x, params)
    optimizer = make_optimizer(dataclasses.replace(OPTIONS, value_head_rate=5.0), phases=1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_allclose(updates["value_head"][0], 5 * updates["kernel"], rtol=1e-6)
    assert (updates["kernel"] < 0).all()


def test_a_value_head_reads_the_conversation_alone():
    words = {"judge_question": world.JUDGE, "answer_question": world.ASK, "answers": world.ANSWERS}
    talk = make_dialogue(world.make_tokenizer(), Texts(**words))
    prompt = ({"role": "user", "content": "s1 o1"},)
    bare = prefix_ids(make_dialogue(talk.tokenizer, Texts(**words, kind="bare")), prompt, "s2 warm")
    assert talk.tokenizer.decode(bare) == "<bos> <user> s1 o1 <end> <assistant> s2 warm <end>"
    longer = talk.tokenizer.decode(prefix_ids(talk, prompt, "s2 warm"))
    assert longer == "<bos> <user> s1 o1 <end> <assistant> s2 warm <end> <user> judge <end> <assistant>"


POINTWISE = {name for name in objectives.names() if objectives.load(name).judges[0] != "label"}
TRACED = {"bvpo", "oprm", "preference_embedding"}  # their programs are traced from the config, in tests of their own


QUICK = {"bt", "bt_prefilled", "grpo_point"}  # one of each way in which thoughts come and scores are read


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
        for name in sorted(POINTWISE - {"dwrl", "sft", *TRACED})
    ],
)
def test_every_baseline_has_a_smoke_run(base, name, tmp_path):
    results = fit(tmp_path, f"--config.model.path={base}", variant=f"{name},smoke")
    assert results["steps"] == 4 and results["config"]["objective"]["name"] == name
    assert all(cell["pairs"] == 8 and cell["nll"] > 0 for cell in results["trained"].values())
    shared = {"train/pair_accuracy", "train/ties", "train/pair_nll", "train/log_odds", "train/misalignment_weight"}
    assert shared <= lines(tmp_path / "metrics.jsonl")[0].keys()
    assert "<html" in (tmp_path / "report.html").read_text()
    assert results["judge"] == objectives.load(name).judges[0]
    score = "reward" if results["judge"] == "reward" else "score"
    assert all({"reward", "score"} & row.keys() == {score} for row in lines(tmp_path / "thoughts.jsonl"))


@pytest.mark.parametrize("name", ["bt", pytest.param("bt_prefilled", marks=pytest.mark.slow), "grpo_point"])
def test_a_stopped_baseline_goes_on_bit_for_bit(base, name, tmp_path, monkeypatch):
    options = [f"--config.model.path={base}"]
    options += ["--config.objective.kl=0.1"] if name == "grpo_point" else []
    fit(tmp_path / "whole", *options, variant=f"{name},smoke")
    with monkeypatch.context() as patched:
        patched.setattr(hosts, "stop", lambda asked: 15)
        with pytest.raises(loop.Stopped, match="after step 1 of 4"):
            fit(tmp_path / "parts", *options, variant=f"{name},smoke")
    fit(tmp_path / "parts", *options, variant=f"{name},smoke")
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_prefilled_thoughts_are_never_drawn_again(base, tmp_path):
    """The same two pairs at every step, and a policy that changes: the scores do, the thoughts do not."""
    rows = [{"prompt": "s1 o1 o2", "chosen": f"s{i} warm", "rejected": "s5 curt"} for i in (2, 3)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = ["optim.learning_rate=0.01", "log.thoughts_every=1", "eval.pairs=0", f"data.train={tmp_path}/pairs.jsonl"]
    arguments = [f"--config.model.path={base}", *(f"--config.{change}" for change in changes)]
    fit(tmp_path / "run", *arguments, variant="bt_prefilled,smoke")
    thoughts, scores = {}, {}
    for row in sorted(lines(tmp_path / "run" / "thoughts.jsonl"), key=lambda row: (row["pair"], row["side"])):
        thoughts.setdefault(row["step"], []).append(row["thought"])
        scores.setdefault(row["step"], []).append(row["score"])
    assert len(thoughts) == 4 and all(found == thoughts[1] for found in thoughts.values())
    assert len(set(thoughts[1])) > 4
    assert np.abs(np.array(scores[4]) - np.array(scores[1])).max() > 1e-3


def test_thoughts_where_there_are_none_are_refused(base, tmp_path):
    for change in ("sampler.group_size=2", "eval.votes=(1, 8)"):
        with pytest.raises(UserError, match="judges without thoughts: give sampler.group_size=1"):
            fit(tmp_path, f"--config.model.path={base}", f"--config.{change}", variant="bt_token,smoke")


def test_a_reward_model_is_exported_for_transformers(base, tmp_path):
    """The reward that transformers gives for a conversation is ours, and training goes on from the folder."""
    fit(tmp_path / "run", f"--config.model.path={base}", "--config.optim.learning_rate=0.01", variant="bt,smoke")
    done = call("export", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'model'}")
    assert done.returncode == 0, done.stderr
    again = fit(tmp_path / "again", f"--config.model.path={tmp_path / 'model'}", variant="bt,smoke")
    before = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["base"]["k1"]["nll"] == pytest.approx(before["trained"]["k1"]["nll"], rel=1e-5)
    with pytest.raises(UserError, match="reward model with a value head; objective.name=bt alone"):
        fit(tmp_path / "other", f"--config.model.path={tmp_path / 'model'}", variant="bt_token,smoke")

    pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.config.num_labels == 1 and model.config.pad_token_id == tokenizer.pad_token_id
    chat = [{"role": "user", "content": "s1 o2 o3 o4 o5 o6"}, {"role": "assistant", "content": "s3 warm"}]
    ids = tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
    judge, _ = scalar_judge()
    _, shape = export.read_architecture(tmp_path / "run")
    judge = dataclasses.replace(judge, model=Decoder(shape))
    batch = make_batch(pairs=1, length=ids.shape[1])
    batch = batch.replace(prefix=jnp.asarray(ids.numpy())[None].repeat(2, 1), prefix_len=jnp.full((1, 2), ids.shape[1]))
    expected = rewards(judge, params_of(tmp_path / "run"), batch)[0, 0]
    assert float(model(ids).logits[0, 0].detach()) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("preset", ["llama3.1-8b", "qwen2.5-3b"])
def test_reward_models_round_trip(preset, tmp_path):
    """With and without a tied embedding: the lm-head is gone, the value head is there, nothing else changes."""
    hf_config = with_value_head(shrink(PRESETS[preset], 24), pad_id=0)
    config = model_config(hf_config)
    params = hf.random_params(config, 0)
    assert "value_head" in params["params"] and "lm_head" not in params["params"]
    hf.save_model(tmp_path / "model", params, config, hf_config)
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), params)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"][0].endswith("Classification")
