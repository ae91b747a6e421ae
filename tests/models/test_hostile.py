"""Files of a model that lie: each is named in one line, and nothing outside the model's folder is read."""

import json
import math
import os
import re
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.families.presets import PRESETS
from dwrl_jax.models.hf import peft_merge
from dwrl_jax.models.hf.tensor_files import find_tensors, read_header
from tests.runs import REPO, run_command

SAID = PRESETS["qwen3-4b"]
FOUND = np.arange(12, dtype="f4").reshape(3, 4)


def write_config(folder, **changes):
    (folder / "config.json").write_text(json.dumps(SAID | changes))
    return folder


SIZE_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
SIZE_KEYS += ("intermediate_size", "max_position_embeddings")
ABSURD = (10**10, 10**30, 0, -1, 1.5, math.nan, math.inf, "64", True, [64], {})


@pytest.mark.parametrize("key", SIZE_KEYS)
def test_sizes_that_no_model_has(key, tmp_path):
    for value in ABSURD:
        with pytest.raises(UserError, match=rf"config.json: {key} = .* must be a whole number, 1 to ") as told:
            read_config(write_config(tmp_path, **{key: value}))
        assert len(str(told.value)) < 300 and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers = 1000000 is not possible"),
        ({"hidden_size": 10**9}, "hidden_size = 1000000000 is not possible"),
        ({"rope_theta": math.nan}, "rope_theta = nan is not possible: it must be a positive number"),
        ({"rope_theta": -1}, "rope_theta = -1 is not possible"),
        ({"rms_norm_eps": "x" * 999}, "rms_norm_eps = 'x{59} is not possible"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings = 'false' is not possible: it must be true or false"),
        ({"architectures": "Qwen3ForCausalLM"}, "it must be a list of names"),
        ({"layer_types": 5}, "layer_types = 5 is not possible"),
        ({"id2label": [0]}, "id2label = .0. is not possible: it must be an object"),
        ({"quantization_config": "fp8"}, "quantization_config = 'fp8' is not possible"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": math.inf}}, "rope_scaling.factor = inf is not possible"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -2}}, "rope_scaling.factor = -2 is not possible"),
        ({"rope_parameters": {"full_attention": {"factor": 0}}}, "rope_parameters.full_attention.factor = 0 is not"),
        ({"rope_scaling": {"original_max_position_embeddings": "9"}}, "rope_scaling.original_max_.* = '9' is not"),
    ],
)
def test_values_that_no_model_has(changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_config(write_config(tmp_path, **changes))


def test_values_of_a_text_half(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "new", "text_config": SAID | {"head_dim": -1}}))
    with pytest.raises(UserError, match="head_dim = -1"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
def test_published_models_are_possible(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PRESETS[name]))
    assert model_config(read_config(tmp_path)).layers == PRESETS[name]["num_hidden_layers"]


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("qwen3-4b", {"num_key_value_heads": 3}, "num_attention_heads = 32 is no multiple of num_key_value_heads = 3"),
        ("qwen3-4b", {"head_dim": 7}, "the size of a head is 7"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": 129}, "num_experts_per_tok = 129 of 128 experts"),
        ("qwen3-4b", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
    ],
)
def test_values_that_contradict_each_other(preset, changes, message):
    with pytest.raises(UserError, match=message):
        model_config(PRESETS[preset] | changes)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a": ' + "9" * 5000 + "}", "\xff", "[1]"])
def test_json_that_is_none(text, tmp_path):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="config.json: (not JSON|expected a JSON object)"):
        read_config(tmp_path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(UserError, match="config.json: no file"):
        read_config(tmp_path)


# ------------------------------------------------------------------------------------------------ safetensors


def stored(folder, change=lambda header: header, length=None, cut=None):
    """A safetensors file whose header is changed."""
    path = folder / hf.SINGLE
    save_file({"a": FOUND, "b": FOUND + 1}, path)
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    text = change(json.loads(content[8 : 8 + size]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    text += b" " * (-len(text) % 8)
    begin = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes((begin + text + content[8 + size :])[:cut])
    return path


def entry(**changes):
    return lambda header: header | {"b": header["b"] | changes}


LIES = {
    "cut off": {"cut": -9},
    "nothing": {"cut": 0},
    "no whole length": {"cut": 5},
    "length of 2^62": {"length": 2**62},
    "length beyond the file": {"length": 10**6},
    "length too short": {"length": 20},
    "length 0": {"length": 0},
    "overlap": {"change": entry(data_offsets=[0, 48])},
    "beyond the end": {"change": entry(data_offsets=[48, 10**9], shape=[1, (10**9 - 48) // 4])},
    "a hole": {"change": entry(data_offsets=[52, 96], shape=[11])},
    "backwards": {"change": entry(data_offsets=[96, 48])},
    "negative": {"change": entry(data_offsets=[-48, 0])},
    "shape without bytes": {"change": entry(shape=[300, 400])},
    "shape that overflows": {"change": entry(shape=[2**33, 2**33])},
    "shape of words": {"change": entry(shape="x")},
    "unknown type": {"change": entry(dtype="PICKLE")},
    "no object": {"change": lambda header: [1]},
    "too deep": {"change": lambda header: b'{"a": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"},
    "trailing bytes": {
        "change": lambda header: header | {"b": header["b"] | {"data_offsets": [48, 92], "shape": [11]}}
    },
}


@pytest.mark.parametrize("lie", LIES)
def test_safetensors_that_lie(lie, tmp_path):
    with pytest.raises(UserError, match="model.safetensors: no readable safetensors file") as told:
        read_header(stored(tmp_path, **LIES[lie]))
    assert "\n" not in str(told.value)


def test_safetensors_that_do_not_lie(tmp_path):
    held = read_header(stored(tmp_path))
    np.testing.assert_array_equal(held["b"].view(), FOUND + 1)


@pytest.mark.parametrize("dtype", ["I32", "I64", "BOOL"])
def test_whole_numbers_are_no_weights(dtype, tiny, tmp_path):
    hf_config, config, params = tiny
    hf.save_model(tmp_path / "model", params, config, hf_config)
    key, kind = "model.norm.weight", {"I32": "i4", "I64": "i8", "BOOL": "?"}[dtype]
    read = {name: np.array(x.view()) for name, x in read_header(tmp_path / "model" / hf.SINGLE).items()}
    save_file(read | {key: read[key].astype(kind)}, tmp_path / "model" / hf.SINGLE)
    with pytest.raises(UserError, match=f"{key} has type {dtype}"):
        hf.load_params(tmp_path / "model", config)


# ------------------------------------------------------------------------------------------------ names in files


@pytest.fixture
def outside(tmp_path):
    """A folder with an index, and a whole file of tensors beside the folder."""
    stored(tmp_path)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def write_index(folder, name):
    (folder / hf.INDEX).write_text(json.dumps({"weight_map": {"a": name, "b": name}}))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/{}/model.safetensors", "x/../../model.safetensors", "..", ".", "", 5, None, ["a"]],
)
def test_an_index_names_files_of_its_folder_alone(name, outside):
    write_index(outside, name.format(outside.parent) if isinstance(name, str) else name)
    with pytest.raises(UserError, match=r"index.json: a is in .*, which is no \*.safetensors file of this folder"):
        find_tensors(outside)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x\0.safetensors.pkl"])
def test_an_index_names_no_pickles(name, outside):
    write_index(outside, name)
    with pytest.raises(UserError, match="which is no .*safetensors file of this folder"):
        find_tensors(outside)


def test_links_of_the_hub_lead_to_its_blobs(tmp_path):
    """A snapshot has links to ../../blobs: the links of a file system are followed, names in files are not."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots" / "main").mkdir(parents=True)
    stored(tmp_path).rename(tmp_path / "blobs" / "0123")
    (tmp_path / "snapshots" / "main" / hf.SINGLE).symlink_to("../../blobs/0123")
    tensors, _ = find_tensors(tmp_path / "snapshots" / "main")
    np.testing.assert_array_equal(tensors["a"].view(), FOUND)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_model_name_or_path": 5}, "base_model_name_or_path is missing"),
        ({"lora_alpha": "x"}, "'x' is no number"),
        ({"lora_alpha": math.nan}, "nan is no number"),
        ({"alpha_pattern": {"q": None}}, "None is no number"),
        ({"alpha_pattern": ["q"]}, "alpha_pattern = .* is not read"),
        ({"alpha_pattern": {"(((": 1}}, "alpha_pattern = .* is not read"),
        ({"alpha_pattern": {"(.*.*)*(a|a)*z": 1}}, "alpha_pattern = .* at most three repetitions"),
        ({"alpha_pattern": {"(?:m|m)+" + "z": 1}}, "alpha_pattern = .* at most three repetitions"),
        ({"alpha_pattern": {".*.*.*.*z": 1}}, "alpha_pattern = .* at most three repetitions"),
    ],
)
def test_adapters_that_lie(settings, message, tmp_path):
    save_file({"base_model.model.a.lora_A.weight": FOUND}, tmp_path / peft_merge.WEIGHTS)
    said = {"peft_type": "LORA", "base_model_name_or_path": "m"} | settings
    with pytest.raises(UserError, match=message):
        peft_merge.parts_of(tmp_path, said)
        peft_merge.base_name(tmp_path, said)


# ------------------------------------------------------------------------------------------------ the command


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("", "", "config.json: num_hidden_layers = 1000000 is not possible"),
        ("mesh.data", 0, "mesh.data=0, .*: sizes are at least 1"),
        ("mesh.fsdp", -7, "mesh.fsdp=-7, .*: sizes are at least 1"),
        ("mesh.tensor", 1009, "mesh.tensor=1009: these do not make up the 1 devices there are"),
        ("mesh.data", -1, "one of them may be -1"),
        ("mesh.pipe", 2, "mesh.pipe: no such key"),
    ],
)
def test_bad_input_ends_a_run_before_it_writes(key, value, message, tmp_path, capsys):
    """One line, exit code 2, and no workdir."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder, num_hidden_layers=10**6)
    flags = [f"--config={REPO / 'configs' / 'tiny.py'}:smoke", f"--config.model.path={folder}"]
    flags.append(f"--workdir={tmp_path / 'run'}")
    assert run_command("train", *flags, *([f"--config.{key}={value}"] if key else [])) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and re.search(message, said), said
    assert not (tmp_path / "run").exists()


def test_a_folder_that_was_there_stays(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    flags = [f"--config={REPO / 'configs' / 'tiny.py'}:smoke", f"--config.model.path={tmp_path / 'none'}"]
    assert run_command("train", *flags, f"--workdir={tmp_path / 'run'}") == 2
    assert (tmp_path / "run").is_dir() and "no such folder" in capsys.readouterr().err
