"""Golden: a cycle of preferences, which no reward can have. Exact: the score, and its way through a judge."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import Logps
from dwrl_jax.evaluation import metrics as evaluate
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import no_thoughts
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives import bt, preference_embedding
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import assemble as build
from dwrl_jax.training import config as configuration
from tests.runs import tiny, trace_update
from tests.small import make_batch, make_judge

HYPER = preference_embedding.Hyper(planes=2, beta=0.5)


def of_scores(scores):
    """Logps of one score [B S] for each side."""
    answer = scores[..., None]
    return Logps(jnp.zeros((*answer.shape, 1)), answer, jnp.ones_like(answer), jnp.zeros((*answer.shape, 1)))


CYCLE = np.array([[0, 1], [1, 2], [2, 0]])  # a > b, b > c, c > a


def fitted(loss, scores_of, params):
    """The mean loss of the cycle's three pairs after many steps, and the share of them that is right."""
    optimizer = optax.adam(0.05)

    def total(params):
        losses, metrics = loss(of_scores(scores_of(params[CYCLE])), None)
        return losses.mean(), metrics

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(lambda x: total(x)[0])(params), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), None, 400))(params)
    found, metrics = total(params)
    return float(found), float(metrics["pair_accuracy"].mean())


@pytest.mark.parametrize("planes", [1, 2])
def test_a_cycle_is_learnt(planes):
    """Three vectors a third of a turn apart win by sin 120 degrees each, from wherever they start."""
    hyper = preference_embedding.Hyper(planes=planes)
    (loss,) = preference_embedding.phases(hyper).values()
    start = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2 * planes)), jnp.float32)
    nll, accuracy = fitted(loss, functools.partial(preference_embedding.value_scores, hyper=hyper), start)
    assert accuracy == 1
    assert nll == pytest.approx(np.log1p(np.exp(-np.sqrt(3 / 4) / 0.1)), rel=0.02)


def test_no_reward_has_a_cycle():
    """Differences around a cycle sum to zero, so the mean of -log sigmoid is log 2 at best."""
    (loss,) = bt.phases(bt.Hyper()).values()
    start = jnp.asarray(np.random.default_rng(0).normal(size=3), jnp.float32)
    nll, accuracy = fitted(loss, lambda values: values, start)
    assert nll == pytest.approx(np.log(2), abs=1e-4) and nll >= np.log(2) - 1e-6 and accuracy < 1


def test_score_is_the_skew_symmetric_form():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 5, 6))
    turn = np.kron(np.eye(3), [[0, -1], [1, 0]])  # R
    expected = np.einsum("bi,ij,bj->b", second, turn, first)
    np.testing.assert_allclose(preference_embedding.preference_score(first, second), expected, rtol=1e-5)
    np.testing.assert_allclose(preference_embedding.preference_score(second, first), -expected, rtol=1e-5)
    rewards = np.array([[2.0, 1.0], [0.5, 1.0]])  # (r, 1)
    assert preference_embedding.preference_score(*rewards) == pytest.approx(1.5)


def test_scores_of_a_pair_in_numbers():
    """v+ = (1, 0) and v- = (0.6, 0.8) once of length 1: s = 0.8."""
    values = jnp.asarray([[[3.0, 0.0], [3.0, 4.0]], [[3.0, 4.0], [3.0, 0.0]]])
    hyper = preference_embedding.Hyper(planes=1, beta=0.5)
    scores = preference_embedding.value_scores(values, hyper)
    np.testing.assert_allclose(scores, [[0.8, -0.8], [-0.8, 0.8]], rtol=1e-6)
    losses, metrics = preference_embedding.preference_loss(of_scores(scores), None, hyper)
    np.testing.assert_allclose(losses, np.log1p(np.exp([-1.6, 1.6])), rtol=1e-6)
    assert metrics["pair_accuracy"].tolist() == [1, 0]
    np.testing.assert_allclose(evaluate.log_odds(np.asarray(scores)[..., None], 1)[:, 0], [1.6, -1.6], rtol=1e-6)
    gradient = jax.grad(lambda x: preference_embedding.value_scores(x, hyper)[0, 0])(jnp.zeros((1, 2, 2)))
    assert np.isfinite(gradient).all()


def embedding_judge():
    judge, params = make_judge(kind="embedding")
    shape = dataclasses.replace(judge.model.config, value_head=preference_embedding.OBJECTIVE.value_outputs(HYPER))
    scores = functools.partial(preference_embedding.value_scores, hyper=HYPER)
    return dataclasses.replace(judge, model=Decoder(shape), value_scores=scores), hf.with_value_head(params, shape, 0)


def test_a_judge_scores_by_the_last_hidden_states():
    judge, params = embedding_judge()
    batch = make_batch(pairs=1)
    found = logps(judge, params, batch, no_thoughts(batch, judge.end))
    head = np.asarray(params["params"]["value_head"])
    embedding = []
    for ids, length in zip(batch.prefix[0], batch.prefix_len[0].tolist()):
        hidden, _ = judge.model.apply(params, ids[None, None, :length], jnp.arange(length)[None, None])
        value = head @ np.asarray(hidden[0, 0, -1])
        embedding.append(value / np.linalg.norm(value))
    (a, b, c, d), (e, f, g, h) = embedding
    expected = a * f - b * e + c * h - d * g
    assert abs(expected) > 0.01
    np.testing.assert_allclose(found.answer[0, :, 0], [expected, -expected], atol=1e-5)  # 2 beta is 1


def test_a_head_of_several_outputs_is_exported_for_transformers(tmp_path):
    """Its outputs there are the embedding, and the folder says how many there are."""
    hf_config = with_value_head(shrink(PRESETS["qwen2.5-3b"], 24), pad_id=0, outputs=4)
    config = model_config(hf_config)
    params = hf.random_params(config, 0)
    assert config.value_head == 4 and params["params"]["value_head"].shape[0] == 4
    hf.save_model(tmp_path / "model", params, config, hf_config)
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), params)

    torch = pytest.importorskip("torch")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    ids = np.arange(4, 11)[None]
    hidden, _ = Decoder(config).apply(params, jnp.asarray(ids)[None], jnp.arange(7)[None, None])
    expected = np.asarray(params["params"]["value_head"] @ hidden[0, 0, -1])
    np.testing.assert_allclose(model(torch.asarray(ids)).logits[0].detach().numpy(), expected, atol=1e-4)
    model.save_pretrained(tmp_path / "again")
    assert model_config(read_config(tmp_path / "again")).value_head == 4


def test_outputs_without_names_are_two():
    """So transformers writes a model of two labels, its default."""
    hf_config = with_value_head(shrink(PRESETS["qwen2.5-3b"], 24), pad_id=0, outputs=2)
    assert model_config(hf_config).value_head == 2
    assert model_config({key: value for key, value in hf_config.items() if key != "id2label"}).value_head == 2


def config_of(*changes):
    return parse([*tiny("preference_embedding,smoke"), "--workdir=unused", *changes])[0]


def test_a_head_of_another_size_is_refused(tmp_path):
    hf_config = with_value_head(shrink(PRESETS["qwen2.5-3b"], 24), pad_id=0, outputs=4)
    hf.save_model(tmp_path / "model", hf.random_params(model_config(hf_config), 0), model_config(hf_config), hf_config)
    tokenizer = build.load_tokenizer(config_of().base, tmp_path)
    start = tmp_path / "model", hf_config, tokenizer
    with pytest.raises(UserError, match="objective.name=preference_embedding with objective.planes=2 alone"):
        build.architecture(config_of("--config.objective.planes=3"), *start)
    assert build.architecture(config_of("--config.objective.planes=2"), *start)["num_labels"] == 4


def test_its_update_has_a_head_of_two_k_outputs():
    state = trace_update("preference_embedding,smoke").args_info[0][0]
    assert state.params["params"]["value_head"].shape[0] == 8


@pytest.mark.parametrize("change", ["planes=0", "beta=0.0"])
def test_values_that_cannot_be_meant(change):
    with pytest.raises(UserError, match=f"objective.{change}: must be"):
        configuration.check(config_of(f"--config.objective.{change}"))
