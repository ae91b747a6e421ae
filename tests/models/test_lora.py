"""Adapters: the three ways to compute with them, their gradient, and the folders of PEFT."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.types import TrainState
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import logps
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import frozen, hf, lora
from dwrl_jax.models.families import model_config, with_value_head
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.hf import peft_folder, peft_merge
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import Decoder, axis_names, logits, output_table
from dwrl_jax.models.unstacked import unstack
from dwrl_jax.objectives import dwrl
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.step import gradient, make_train_step
from tests.small import VOCAB, assert_trees_close, given_thoughts, in_process_of_devices, lively, make_batch, make_judge
from tests.training.test_train_step import OPTIONS

SETTINGS = LoraSettings(rank=3, alpha=6.0, base="float32")
TABLES = dataclasses.replace(SETTINGS, targets=("q_proj", "o_proj", "experts", "embed_tokens", "lm_head"))
EXPERTS = dataclasses.replace(SETTINGS, targets=("attention", "experts"))
TOKENS = np.random.default_rng(1).integers(4, VOCAB, (2, 9))


def moved(config, settings, start, seed=3):
    """Adapters, and a value head, far from their beginning."""
    trained = lora.begun(start, config, settings, 0)
    leaves, tree = jax.tree.flatten(trained)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([x + 0.05 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys)])


@functools.cache
def applied(config):
    return jax.jit(Decoder(config).apply)


def outputs(config, variables, tokens=TOKENS):
    """Logits [P, T, V] of all positions."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)[:, None]
    hidden, _ = applied(config)(variables, jnp.asarray(tokens)[:, None], positions)
    tree = variables["params"]
    return logits(hidden[:, 0], tree["value_head"] if config.value_head else output_table(variables))


def test_invariance_beside_merged_and_unstacked():
    """x W + x A B, x (W + A B) in the stack, and layer by layer as the sampler has it; fresh ones change nothing."""
    config = model_config(shrink(PRESETS["qwen3-30b-a3b"], VOCAB))
    params = lively(config)
    beside = lora.variables(TABLES, params, moved(config, TABLES, params))
    alone = dataclasses.replace(config, scanned=False)
    expected, plain = outputs(config, beside), outputs(config, params)
    assert float(jnp.abs(expected - plain).max()) > 0.1
    assert_trees_close(outputs(config, lora.merged(beside)), expected, 1e-5)
    assert_trees_close(outputs(alone, unstack(beside, alone)), expected, 1e-5)
    begun = lora.begun(params, config, TABLES, 0)
    for pair in (begun["lora"]["layers"]["experts"]["gate"], begun["lora"]["layers"]["q"]):
        assert 0.9 < float(jnp.abs(pair["left"]).max()) * config.hidden_size**0.5 <= 1
    fresh = lora.variables(TABLES, params, begun)
    np.testing.assert_array_equal(outputs(config, fresh), plain)
    half = dataclasses.replace(TABLES, rank_stabilised=True)
    assert half.scale == pytest.approx(6 / 3**0.5) and TABLES.scale == 2


def test_the_backward_pass_keeps_little_more_for_an_adapter_than_for_a_matrix():
    """Per token: what goes through the adapters' rank, but not their outputs, which are as large as the layer's own."""
    config = model_config(shrink(PRESETS["qwen2.5-3b"], VOCAB), remat="dots")
    params = lively(config)
    trained = lora.begun(params, config, SETTINGS, 0)

    def kept(learnt, of, tokens):
        """Bytes that the backward pass of two texts of so many tokens is given."""
        positions = jnp.zeros((2, 1, tokens), jnp.int32)

        def hidden(learnt):
            return Decoder(config).apply(of(learnt), positions, positions)[0].sum()

        residuals = jax.eval_shape(lambda learnt: jax.vjp(hidden, learnt)[1], learnt)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals))

    def per_token(*work):
        return (kept(*work, 96) - kept(*work, 64)) / (2 * 32)

    whole = per_token(params, lambda params: params)
    beside = per_token(trained, lambda trained: lora.variables(SETTINGS, params, trained))
    ranks = 4 * SETTINGS.rank * 7 * config.layers
    assert ranks / 2 < beside - whole < 2 * ranks


@pytest.fixture(scope="module")
def small():
    """A judge, its parameters, pairs with thoughts, adapters that have moved, a loss, and its gradient."""
    judge, params = make_judge()
    rng = np.random.default_rng(0)
    thoughts = given_thoughts(rng.integers(4, 24, (2, 2, 2, 5)), rng.integers(2, 6, (2, 2, 2)))
    settings = dataclasses.replace(SETTINGS, targets=("attention", "feed_forward", "embed_tokens"))
    loss, trained = dwrl.updates(dwrl.Hyper(updates="joint"))["joint"], moved(judge.model.config, settings, params)
    model, batch = functools.partial(lora.variables, settings, params), make_batch(pairs=2)
    found = jax.jit(lambda t: gradient(judge, loss, t, batch, thoughts, model=model))(trained)
    return judge, params, batch, thoughts, settings, trained, loss, found


def test_exact_gradient(small):
    """With W = W0 + s A B: dl/dA = s dl/dW B^T and dl/dB = s A^T dl/dW, from the gradient of all weights."""
    judge, params, batch, thoughts, settings, trained, loss, (found, _) = small
    whole = lora.merged(lora.variables(settings, params, trained))
    grads, _ = jax.jit(lambda p: gradient(judge, loss, p, batch, thoughts))(whole)

    def pulled(grad, pair):
        left, right = pair["left"].reshape(-1, settings.rank), pair["right"].reshape(settings.rank, -1)
        grad = settings.scale * grad.reshape(len(left), -1)
        return {
            "left": (grad @ right.T).reshape(pair["left"].shape),
            "right": (left.T @ grad).reshape(pair["right"].shape),
        }

    expected = {"embed": pulled(grads["params"]["embed"]["embedding"], trained["lora"]["embed"])}
    expected["layers"] = {
        name: jax.vmap(pulled)(grads["params"]["layers"][name]["kernel"], pair)
        for name, pair in trained["lora"]["layers"].items()
    }
    assert_trees_close(found["lora"], expected, 1e-5)
    assert min(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected)) > 0


def losses(small, settings, micro_batches, *numbers):
    """The loss and the state of a step from the same adapters, for each number of the step."""
    judge, params, batch, thoughts, _, trained, loss, _ = small
    optimizer = make_optimizer(OPTIONS, phases=1)
    step = make_train_step(judge, optimizer, {"joint": loss}, micro_batches, adapters=settings)
    for number in numbers:
        state = TrainState(jnp.int32(number), jax.tree.map(jnp.copy, trained), optimizer.init(trained))
        state, metrics = step(state, batch, thoughts, None, params)
        yield float(metrics["loss_joint"]), state


def test_a_step_moves_adapters_alone(small):
    """The optimizer knows no frozen weight, and micro-batches add up."""
    ((loss, state),) = losses(small, small[4], 2, 0)
    count = sum(x.size for x in jax.tree.leaves(small[5]))
    assert 2 * count <= sum(x.size for x in jax.tree.leaves(state.opt_state)) < 2 * count + 10
    assert loss == pytest.approx(float(small[7][1]["loss"]), rel=1e-4)


@pytest.mark.slow
def test_dropout_has_noise_of_its_own_in_each_step(small):
    noisy = dataclasses.replace(small[4], dropout=0.5)
    first, again, next_ = (found for found, _ in losses(small, noisy, 1, 0, 0, 1))
    assert first == again != next_ != pytest.approx(float(small[7][1]["loss"]), rel=1e-3)


PRESETS_AND_OUTPUTS = {"qwen2": ("qwen2.5-7b", 0), "qwen3-reward": ("qwen3-4b", 2), "experts": ("qwen3-30b-a3b", 0)}


@pytest.fixture(scope="module", params=PRESETS_AND_OUTPUTS.values(), ids=PRESETS_AND_OUTPUTS)
def exported(request, tmp_path_factory):
    """Folders of a model and of its adapters, with what they were written from."""
    preset, outputs_ = request.param
    folder, hf_config = tmp_path_factory.mktemp(preset), shrink(PRESETS[preset], VOCAB)
    if outputs_:
        hf_config = with_value_head(hf_config, 0, outputs_)
    config = model_config(hf_config)
    tables = () if config.tied or outputs_ else ("embed_tokens", "lm_head")
    matrices = EXPERTS.targets if config.experts else SETTINGS.targets
    settings = dataclasses.replace(SETTINGS, rank_stabilised=bool(outputs_), targets=(*matrices, *tables))
    params = lively(config)
    trained = moved(config, settings, params)
    hf.save_model(folder / "base", params, config, hf_config)
    peft_folder.save(
        folder / "peft",
        trained,
        lora.chosen(config, settings.targets),
        config,
        hf_config,
        settings,
        str(folder / "base"),
    )
    return folder, config, hf_config, settings, params, trained


def test_parity_with_peft(exported):
    """PEFT's logits, or its values at the last token, from our folder; and the same from the merged parameters."""
    folder, config, _, settings, params, trained = exported
    ours = outputs(config, lora.merged(lora.variables(settings, params, trained)))
    kind = AutoModelForSequenceClassification if config.value_head else AutoModelForCausalLM
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    if config.experts:
        convert = pytest.importorskip("transformers.core_model_loading").WeightRenaming.convert
        if "loading_info" not in inspect.signature(convert).parameters:
            pytest.skip(f"PEFT {peft.__version__} reads adapters of experts with a newer transformers alone")
    model = peft.PeftModel.from_pretrained(kind.from_pretrained(folder / "base"), folder / "peft").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    ours = ours[:, -1] if config.value_head else ours
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(ours - np.asarray(outputs(config, params))[:, -1 if config.value_head else slice(None)]).max() > 0.1


def test_a_folder_of_peft_is_a_start(exported):
    """Without a rank it is merged; with the same rank its adapters come back as they were, beside its base."""
    folder, config, hf_config, settings, params, trained = exported
    matrices = lora.chosen(config, settings.targets)
    back = peft_folder.read(folder / "peft", matrices, config, settings, hf_config)
    jax.tree.map(np.testing.assert_array_equal, back, trained["lora"])
    base = hf.load_params(folder / "peft", config, low_rank=False)
    jax.tree.map(np.testing.assert_array_equal, base["params"]["layers"], params["params"]["layers"])
    if "embed" not in trained["lora"]:
        whole = hf.load_params(folder / "peft", config)
        assert_trees_close(whole, lora.merged(lora.variables(settings, params, trained)), 1e-6)
    assert peft_folder.read(folder / "base", matrices, config, settings, hf_config) is None
    for change, message in (
        ({"rank": 4}, "r = 3, but lora.rank = 4; give --config.lora.rank=3"),
        ({"alpha": 1.0}, "lora_alpha = 6.0, but lora.alpha = 1.0"),
        ({"rank_stabilised": not settings.rank_stabilised}, "use_rslora = .*but lora.rank_stabilised"),
    ):
        with pytest.raises(UserError, match=message):
            peft_folder.read(folder / "peft", matrices, config, dataclasses.replace(settings, **change), hf_config)
    with pytest.raises(UserError, match="lora.targets are not the matrices of this adapter: "):
        peft_folder.read(folder / "peft", lora.chosen(config, ("attention",)), config, settings, hf_config)


def test_parity_with_an_adapter_that_peft_wrote(tmp_path):
    """PEFT's own names and places, which our folders repeat."""
    hf_config = shrink(PRESETS["llama3.2-3b"], VOCAB)
    config = model_config(hf_config)
    hf.save_model(tmp_path / "base", lively(config), config, hf_config)
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    made = peft.LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), made).eval()
    model.save_pretrained(tmp_path / "peft")
    with torch.no_grad():
        theirs = model(torch.tensor(TOKENS)).logits.numpy()
    settings = dataclasses.replace(SETTINGS, targets=("q_proj", "down_proj"))
    given = peft_folder.read(tmp_path / "peft", lora.chosen(config, settings.targets), config, settings, hf_config)
    start = hf.load_params(tmp_path / "peft", config, low_rank=False) | {"lora": given}
    np.testing.assert_allclose(outputs(config, lora.variables(settings, start, start)), theirs, atol=1e-4)


def test_targets():
    config = model_config(shrink(PRESETS["llama3.2-3b"], VOCAB))
    names = [lora.module_of(weight) for weight in lora.chosen(config, ("attention", "up_proj"))]
    assert sorted(names) == ["k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    with pytest.raises(UserError, match="'query' is no target; choose of attention, feed_forward, experts, q"):
        lora.chosen(config, ("attention", "query"))
    with pytest.raises(
        UserError, match="'lm_head' matches no matrix of this model that takes an adapter, whose head is its embedding"
    ):
        lora.chosen(config, ("lm_head",))
    with pytest.raises(UserError, match="'experts' matches no matrix of this model that takes an adapter$"):
        lora.chosen(config, ("experts",))


def test_targets_of_a_mixture(tmp_path):
    hf_config = shrink(PRESETS["qwen3-30b-a3b"], VOCAB)
    config = model_config(hf_config)
    matrices = lora.chosen(config, ("experts",))
    assert [weight.path for weight in matrices] == [("layers", "experts", name) for name in ("gate", "up", "down")]
    for target in ("feed_forward", "up_proj"):
        with pytest.raises(UserError, match=f"'{target}' matches .* is a mixture of experts: give experts$"):
            lora.chosen(config, (target,))
    with pytest.raises(UserError, match="lora.dropout=0.1: adapters of experts have none; leave it at 0"):
        lora.check(config, dataclasses.replace(EXPERTS, dropout=0.1))
    other = dataclasses.replace(EXPERTS, rank_stabilised=True)
    with pytest.raises(UserError, match="adapters of experts otherwise with lora.rank_stabilised; export the merged"):
        peft_folder.save(tmp_path / "peft", {"lora": {}}, matrices, config, hf_config, other, "base")


def test_the_hash_knows_a_model(exported, tmp_path):
    """One changed number in the middle of a small tensor is seen, and the folder's name plays no part."""
    folder, config, hf_config, settings, params, _ = exported
    kept = frozen.Frozen(settings, "gone", frozen.model_hash(folder / "base"))
    hf.save_model(tmp_path / "same", params, config, hf_config)
    assert frozen.folder_of(kept, tmp_path, tmp_path / "same") == tmp_path / "same"
    other = jax.tree.map(jnp.copy, params)
    scale = other["params"]["norm"]["scale"]
    other["params"]["norm"]["scale"] = scale.at[len(scale) // 2].add(1)
    hf.save_model(tmp_path / "other", other, config, hf_config)
    with pytest.raises(UserError, match=f"other: not the model of the adapters: its hash is .*, not {kept.hash}"):
        frozen.check(kept, tmp_path / "other")
    assert peft_merge.settings_of(folder / "peft")["base_model_name_or_path"] == str(folder / "base")


def on_a_mesh(sizes, kind=""):
    """Thoughts by the merged weights, their log-probabilities beside them, and the gradient, on a mesh.

    With a `kind` the weights are kept in few bits, and the thoughts are by these and the adapters beside them.
    """
    judge, params = make_judge(vocab_size=32)
    config = judge.model.config
    batch = jax.tree.map(np.asarray, make_batch(pairs=4, vocab_size=32))
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes)), jax.devices()[: np.prod(sizes)])
    settings = dataclasses.replace(SETTINGS, rank=4)
    trained = moved(config, settings, params)
    whole, places = sharding.whole(mesh), sharding.shardings(mesh, lora.trained_axes(config, settings))
    loss = dwrl.updates(dwrl.Hyper(updates="joint"))["joint"]
    with jax.set_mesh(mesh):
        params = jax.device_put(params, sharding.shardings(mesh, axis_names(config)))
        if kind:
            judge = dataclasses.replace(judge, model=Decoder(dataclasses.replace(config, quantised=kind)))
            keep = frozen._in_few_bits(judge.model.config, mesh)
            params = unflatten_dict({path: keep(path[1:], x) for path, x in flatten_dict(params).items()})
            codes = params["params"]["layers"]["gate"]["kernel"]["codes"]
            assert codes.size == len(codes.addressable_shards) * codes.addressable_shards[0].data.size
        trained = jax.device_put(trained, places)

        def draw(trained):
            variables = lora.variables(settings, params, trained)
            thoughts, scores, _ = sample(judge, SamplerOptions(3, 8), variables, batch, jax.random.key(0))
            return thoughts, scores, logps(judge, variables, batch, thoughts)

        def update(trained, thoughts):
            model = functools.partial(lora.variables, settings, params)
            return gradient(judge, loss, trained, batch, thoughts, model=model)[0]

        thoughts, scores, forced = jax.jit(draw, out_shardings=whole)(trained)
        grads = jax.jit(update, out_shardings=places)(trained, thoughts)
        own = grads["lora"]["layers"]["q"]["left"].addressable_shards[0].data.shape
        assert own == (2, 64 // sizes[1], 4)
    return jax.device_get((thoughts, scores, forced, grads))


def every_mesh_agrees(kind=""):
    expected, found = on_a_mesh((1, 1, 1), kind), on_a_mesh((1, 2, 2), kind)
    np.testing.assert_array_equal(found[0].thought, expected[0].thought)
    assert_trees_close(found[1:], expected[1:], 1e-5)
    np.testing.assert_allclose(expected[2].thought, expected[0].old_logp, atol=1e-4)
    np.testing.assert_allclose(expected[2].answer, expected[1], atol=1e-4)


@pytest.mark.slow
def test_invariance_of_meshes():
    """The same thoughts, scores and gradient; the sampler's density is that of the pass beside the weights."""
    in_process_of_devices(every_mesh_agrees, 4)


def every_mesh_agrees_in_few_bits():
    every_mesh_agrees("nf4")


@pytest.mark.slow
def test_invariance_of_meshes_in_few_bits():
    """Each device keeps its own part of the bits, and what is computed from them is that of one device."""
    in_process_of_devices(every_mesh_agrees_in_few_bits, 4)
