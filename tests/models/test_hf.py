"""Hugging Face folders written and read back; what they must not hold; what a model folder is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.hf import save
from tests.small import VOCAB, lively


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exact_round_trip(dtype, tmp_path):
    """save -> load gives the same bits and the same tree as initialisation, also from several files."""
    hf_config = shrink(PRESETS["qwen2.5-7b"], VOCAB)
    config = model_config(hf_config, param_dtype=dtype)
    params = lively(config)
    for name, limit, files in (("one", 2**30, 1), ("many", 50_000, 5)):
        hf.save_model(tmp_path / name, params, config, hf_config, dtype=dtype, max_shard_bytes=limit)
        assert len(list((tmp_path / name).glob("*.safetensors"))) >= files
        assert (tmp_path / name / hf.SINGLE).exists() == (name == "one")
        again = hf.load_params(tmp_path / name, config)
        assert jax.tree.structure(again) == jax.tree.structure(params)
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {jnp.dtype(dtype)}
    assert read_config(tmp_path / "one")["torch_dtype"] == dtype
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many", "one"]


def test_exact_half_precision_sources(tiny, tmp_path):
    """bfloat16 and float16 files read as float32 hold exactly the rounded values."""
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    tensors = load_file(tmp_path / "model" / hf.SINGLE)
    for dtype in (jnp.bfloat16, np.float16):
        save_file({key: t.astype(dtype) for key, t in tensors.items()}, tmp_path / "model" / hf.SINGLE)
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype).astype(np.float32), params)  # noqa: B023
        jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), rounded)


def test_exact_numerics_travel_with_no_checkpoint(tiny, tmp_path):
    """How a model computes is no part of what is saved: every such option can be saved."""
    hf_config, _, params = tiny
    config = model_config(hf_config, dtype="bfloat16", remat="full", attention="xla")
    hf.save_model(tmp_path / "model", params, config, hf_config)
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(tmp_path / "model", config), params)


def test_exact_unaligned_files(saved, tiny):
    """The format lets tensors begin at any byte, whatever the size of their numbers."""
    folder, config = saved
    content = (folder / hf.SINGLE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    (folder / hf.SINGLE).write_bytes(
        (size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :]
    )
    jax.tree.map(np.testing.assert_array_equal, hf.load_params(folder, config), tiny[2])


def test_exact_placement(tiny, tmp_path):
    """Leaves come out where `shardings` puts them."""
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    placed = hf.load_params(tmp_path / "model", config, shardings=jax.tree.map(lambda _: sharding, params))
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(placed))
    jax.tree.map(np.testing.assert_array_equal, placed, params)


# ------------------------------------------------------------------------------------------------- errors


@pytest.fixture
def saved(tiny, tmp_path):
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    return tmp_path / "model", config


Q1 = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q1), rf"1 tensors of the family qwen3 are missing.*{Q1}"),
        (lambda t: t.update({"score.weight": np.zeros((1, 64), "f4")}), "unexpected tensor score.weight"),
        (lambda t: t.update({Q1: t[Q1].T.copy()}), rf"{Q1} has shape \(64, 128\).* makes it \(128, 64\)"),
        (lambda t: t.update({Q1: t[Q1].astype("i1")}), rf"{Q1} has type I8"),
        (lambda t: t.update({"lm_head.weight": np.zeros((VOCAB, 64), "f4")}), "lm_head.weight differs"),
    ],
    ids=["missing", "unexpected", "shape", "type", "untied"],
)
def test_exact_errors_name_the_tensor(saved, change, message):
    folder, config = saved
    tensors = load_file(folder / hf.SINGLE)
    change(tensors)
    save_file(tensors, folder / hf.SINGLE)
    with pytest.raises(UserError, match=message):
        hf.load_params(folder, config)


def test_exact_harmless_extras(saved):
    """A tied lm-head that repeats the embedding and an old rotary buffer are no errors."""
    folder, config = saved
    tensors = load_file(folder / hf.SINGLE)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, "f4")
    save_file(tensors, folder / hf.SINGLE)
    hf.load_params(folder, config)


def test_exact_errors_of_files(saved, tiny, tmp_path):
    folder, config = saved
    with pytest.raises(UserError, match="not an empty folder"):
        hf.save_model(folder, tiny[2], config, tiny[0])
    with pytest.raises(UserError, match="does not describe the model of the parameters"):
        hf.save_model(tmp_path / "new", tiny[2], config, tiny[0] | {"vocab_size": 7})
    whole_file = (folder / hf.SINGLE).read_bytes()
    (folder / hf.SINGLE).write_bytes(whole_file[: len(whole_file) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: no readable"):
        hf.load_params(folder, config)
    (folder / hf.SINGLE).unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        hf.load_params(folder, config)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: not JSON"):
        read_config(folder)
    with pytest.raises(UserError, match=r"nowhere/config\.json: cannot be read"):
        read_config(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_exact_no_half_written_export(tiny, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(save, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        hf.save_model(tmp_path / "out", tiny[2], tiny[1], tiny[0])
    assert list(tmp_path.iterdir()) == []


def test_exact_resolve(saved, monkeypatch):
    assert hf.resolve(str(saved[0])) == saved[0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="nobody/nothing-here: no such folder, and not to be had") as caught:
        hf.resolve("nobody/nothing-here")
    assert "\n" not in str(caught.value)


def test_exact_tokenizer_travels(shared_data, tmp_path):
    """The exported folder of a real model is a whole one: its tokenizer and end tokens come along."""
    transformers = pytest.importorskip("transformers")
    folder = shared_data / "models/stories260K"
    hf_config = read_config(folder)
    config = model_config(hf_config)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    params = hf.load_params(folder, config)
    hf.save_model(tmp_path / "out", params, config, hf_config, tokenizer=tokenizer)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert again("Once upon a time").input_ids == tokenizer("Once upon a time").input_ids
    ends = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert ends == {"bos_token_id": 1, "eos_token_id": 2}
