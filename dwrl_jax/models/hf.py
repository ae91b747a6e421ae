"""Hugging Face folders in and out: safetensors <-> our parameters.

One table, `weight_table`, says which tensor is which parameter and how their axes correspond; reading and
writing both follow it. Letters as in `transformer`: D width, N query heads, K key/value heads, H head size,
F feed-forward width, V vocabulary.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dwrl_jax.errors import UserError
from dwrl_jax.models.hf_config import ARCHITECTURES, model_config, read_json
from dwrl_jax.models.transformer import Decoder, ModelConfig

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt"]


def resolve(path_or_hub_id: str) -> Path:
    """A local folder as it is; anything else is taken for an id and fetched from the Hugging Face hub."""
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(huggingface_hub.snapshot_download(str(path_or_hub_id), allow_patterns=DOWNLOADED))
    except Exception as error:  # network, permission, cache and name errors have no common base class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{path_or_hub_id}: no such folder, and not to be had from the Hugging Face hub ({reason}); "
            "give a folder with config.json and *.safetensors, or check the id, the network and the login"
        ) from error


class Weight(NamedTuple):
    """One parameter of ours and its tensor in a Hugging Face file.

    `groups` are the tensor's axes, each as the axes that it is made of: ((N, H), (D,)) is a [N*H, D] matrix.
    `order` names, for each axis of ours, the split axis that it is: (2, 0, 1) makes [D, N, H] of it.
    """

    key: str  # with "{layer}" in it: one tensor per layer, stacked on our first axis
    path: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]

    @property
    def stacked(self) -> bool:
        return "{layer}" in self.key

    @property
    def hf_shape(self) -> tuple[int, ...]:
        return tuple(math.prod(group) for group in self.groups)

    @property
    def split(self) -> tuple[int, ...]:
        return sum(self.groups, ())

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Of one layer where there is one per layer."""
        return tuple(self.split[axis] for axis in self.order)

    def from_hf(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(self.split).transpose(self.order)

    def to_hf(self, array: np.ndarray) -> np.ndarray:
        return array.transpose(np.argsort(self.order)).reshape(self.hf_shape)


def weight_table(config: ModelConfig) -> list[Weight]:
    """Every parameter of a model of this shape, once."""
    c = config
    D, N, K, H, F, V = c.hidden_size, c.heads, c.kv_heads, c.head_dim, c.mlp_size, c.vocab_size
    block = "model.layers.{layer}."
    heads = {"q": N, "k": K, "v": K}

    def layer(key, *path, groups, order):
        return Weight(block + key, ("layers", *path), groups, order)

    table = [
        Weight("model.embed_tokens.weight", ("embed", "embedding"), ((V,), (D,)), (0, 1)),
        Weight("model.norm.weight", ("norm", "scale"), ((D,),), (0,)),
        layer("input_layernorm.weight", "attention_norm", "scale", groups=((D,),), order=(0,)),
        layer("post_attention_layernorm.weight", "mlp_norm", "scale", groups=((D,),), order=(0,)),
        layer("self_attn.o_proj.weight", "o", "kernel", groups=((D,), (N, H)), order=(1, 2, 0)),
        layer("mlp.gate_proj.weight", "gate", "kernel", groups=((F,), (D,)), order=(1, 0)),
        layer("mlp.up_proj.weight", "up", "kernel", groups=((F,), (D,)), order=(1, 0)),
        layer("mlp.down_proj.weight", "down", "kernel", groups=((D,), (F,)), order=(1, 0)),
    ]
    for name, count in heads.items():
        key = f"self_attn.{name}_proj"
        table.append(layer(f"{key}.weight", name, "kernel", groups=((count, H), (D,)), order=(2, 0, 1)))
        if c.qkv_bias:
            table.append(layer(f"{key}.bias", name, "bias", groups=((count, H),), order=(0, 1)))
    if c.qk_norm:
        for name in ("q_norm", "k_norm"):
            table.append(layer(f"self_attn.{name}.weight", name, "scale", groups=((H,),), order=(0,)))
    if not c.tied:
        table.append(Weight("lm_head.weight", ("lm_head",), ((V,), (D,)), (0, 1)))
    return table


def hf_tensors(config: ModelConfig) -> Iterator[tuple[str, Weight, int | None]]:
    """Key, parameter and layer of every tensor, in the order of the layers."""
    table = weight_table(config)
    yield from ((weight.key, weight, None) for weight in table if not weight.stacked)
    for layer in range(config.layers):
        yield from ((weight.key.format(layer=layer), weight, layer) for weight in table if weight.stacked)


def random_params(config: ModelConfig, seed: int) -> dict:
    """Freshly initialised parameters, without their axis names."""
    token = jnp.zeros((1, 1, 1), jnp.int32)
    return nn.meta.unbox(jax.jit(Decoder(config).init)(jax.random.key(seed), token, token))


def load_params(folder, config: ModelConfig, *, shardings=None) -> dict:
    """{"params": ...} from the safetensors files of a folder, in `config.param_dtype`.

    One parameter at a time is put together on the host and placed by its leaf of `shardings` (a tree like the
    result; None: the default device), so the host needs one stacked parameter beyond the result. Every
    process of a multi-host run reads the whole files. `UserError` names any tensor that is missing, left
    over, of another shape or of a quantised type, and any unreadable file.
    """
    placement = {} if shardings is None else flatten_dict(shardings["params"])
    params = {}
    with contextlib.ExitStack() as stack:
        sources = _open_tensors(Path(folder), stack)
        _check_tensors(Path(folder), sources, config)
        for weight in weight_table(config):
            array = _read_weight(sources, weight, config)
            params[weight.path] = jax.block_until_ready(_place(array, placement.get(weight.path)))
    return {"params": unflatten_dict(params)}


def _open_tensors(folder: Path, stack: contextlib.ExitStack) -> dict:
    """{tensor key: (its file, the open file)} over all safetensors files of the model."""
    names = [SINGLE]
    if not (folder / SINGLE).exists():
        if not (folder / INDEX).exists():
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    sources = {}
    for name in names:
        try:
            file = stack.enter_context(safe_open(folder / name, "numpy"))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{folder / name}: no readable safetensors file ({error})") from error
        sources.update((key, (folder / name, file)) for key in file.keys())  # noqa: SIM118, no dict
    return sources


def _check_tensors(folder: Path, sources: dict, config: ModelConfig) -> None:
    """All tensors are there, of the right shape and of a float type, and no other one is."""
    expected = {key: weight for key, weight, _ in hf_tensors(config)}
    missing = sorted(expected.keys() - sources.keys())
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    for key in sorted(sources):
        path, file = sources[key]
        if key.endswith("rotary_emb.inv_freq"):  # a constant that old exports carry along
            continue
        if key == "lm_head.weight" and config.tied:
            embedding = "model.embed_tokens.weight"
            if not np.array_equal(file.get_tensor(key), sources[embedding][1].get_tensor(embedding)):
                raise UserError(f"{path}: {key} differs from {embedding}, but config.json ties the two")
            continue
        if key not in expected:
            raise UserError(f"{path}: unexpected tensor {key}")
        found = file.get_slice(key)
        shape, dtype = tuple(found.get_shape()), found.get_dtype()
        if shape != expected[key].hf_shape:
            raise UserError(f"{path}: tensor {key} has shape {shape}, config.json makes it {expected[key].hf_shape}")
        if dtype not in ("F32", "BF16", "F16"):
            raise UserError(f"{path}: tensor {key} has type {dtype}, only F32, BF16 and F16 are read")


def _read_weight(sources: dict, weight: Weight, config: ModelConfig) -> np.ndarray:
    def read(key):
        return weight.from_hf(sources[key][1].get_tensor(key))

    if not weight.stacked:
        return read(weight.key).astype(config.param_dtype)
    stacked = np.empty((config.layers, *weight.our_shape), config.param_dtype)
    for layer in range(config.layers):
        stacked[layer] = read(weight.key.format(layer=layer))
    return stacked


def _place(array: np.ndarray, sharding) -> jax.Array:
    if sharding is None:
        return jnp.asarray(array)
    # unlike device_put, this sends nothing between hosts to compare what they hold
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def save_model(
    folder,
    params,
    config: ModelConfig,
    hf_config: dict,
    *,
    tokenizer=None,
    generation_config: dict | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Write a folder that `transformers` and vLLM load: configs, tokenizer files and safetensors in `dtype`.

    `hf_config` is the config.json that `config` was made from. The folder must not exist or be empty: an
    export never replaces anything, not even an earlier export (`UserError`). It is written under a hidden
    name beside its place and renamed at the end, so it is whole or not there. The host holds one file's
    tensors at a time; all of `params` must be addressable from this process.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there and not an empty folder; remove it or choose another name")
    numerics = {name: getattr(config, name) for name in ("dtype", "param_dtype", "remat")}
    if model_config(hf_config, **numerics) != config:
        raise UserError(f"{folder}: the config.json to write describes another model than the parameters")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r} is not written, only float32 and bfloat16")
    architectures = [ARCHITECTURES[hf_config["model_type"]]]
    written = hf_config | {"architectures": architectures, "torch_dtype": dtype, "dtype": dtype}
    if generation_config is None:
        ids = {name: hf_config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation_config = {name: value for name, value in ids.items() if value is not None}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _write_json(partial / "config.json", written)
        _write_json(partial / "generation_config.json", generation_config)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _write_tensors(partial, flatten_dict(params["params"]), config, np.dtype(dtype), max_shard_bytes)
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_tensors(folder: Path, flat: dict, config: ModelConfig, dtype: np.dtype, max_bytes: int) -> None:
    """model.safetensors, or numbered files of at most `max_bytes` (or one tensor) and their index."""
    shards, sizes = [], []
    for entry in hf_tensors(config):
        size = math.prod(entry[1].hf_shape) * dtype.itemsize
        if not shards or sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(entry)
        sizes[-1] += size
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {}
        for key, weight, layer in shard:
            leaf = flat[weight.path]
            array = np.asarray(leaf if layer is None else leaf[layer])
            # safetensors writes the memory of an array as it lies, so a transposed view would be scrambled
            tensors[key] = np.ascontiguousarray(weight.to_hf(array), dtype)
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map})
