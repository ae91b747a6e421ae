"""Hugging Face folders in and out: safetensors <-> our parameters.

One table, `weight_table`, says which tensor is which parameter and how their axes correspond; reading and
writing both follow it. Letters as in `transformer`: D width, N query heads, K key/value heads, H head size,
F feed-forward width, V vocabulary.
"""

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
from jax.experimental.multihost_utils import process_allgather
from safetensors.numpy import save_file

from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import ARCHITECTURES, NUMERICS, REWARD_MODELS, model_config
from dwrl_jax.models.hf.tensor_files import FLOATS, INDEX, SINGLE, Stored, find_tensors
from dwrl_jax.models.transformer import Decoder, ModelConfig

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
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
        """A view: a slice of it is a slice of the tensor, wherever that lies."""
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
        Weight(EMBEDDING, ("embed", "embedding"), ((V,), (D,)), (0, 1)),
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
    if c.value_head:
        table.append(Weight("score.weight", ("value_head",), ((c.value_head,), (D,)), (0, 1)))
    elif not c.tied:
        table.append(Weight(LM_HEAD, ("lm_head",), ((V,), (D,)), (0, 1)))
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


def with_value_head(params, config: ModelConfig, seed: int, scale: float = 1.0, *, shardings=None) -> dict:
    """The parameters of a language model with a fresh value head, `scale` * N(0, 1 / (D + 1)), in the place of its
    lm-head; `config` and `shardings` are those of the result."""
    size = config.hidden_size

    def draw():
        head = scale * (size + 1) ** -0.5 * jax.random.normal(jax.random.key(seed), (config.value_head, size))
        return head.astype(config.param_dtype)

    place = None if shardings is None else shardings["params"]["value_head"]
    kept = {name: part for name, part in params["params"].items() if name != "lm_head"}
    return {"params": kept | {"value_head": jax.jit(draw, out_shardings=place)()}}


def load_params(folder, config: ModelConfig, *, shardings=None) -> dict:
    """{"params": ...} from the safetensors files of a folder, in `config.param_dtype`.

    Every leaf is laid out by its leaf of `shardings` (a tree like the result; None: whole on the default device).
    A process reads what its own devices hold, a piece of one parameter for one device at a time, and once for all
    devices that hold the same; beyond the result the host needs room for one such piece. Nothing is sent between
    processes. A piece that takes a few columns of a matrix still costs a disk the pages around them. `UserError`
    names any tensor that is missing, left over, of another shape or of a quantised type, and any unreadable file.
    """
    places = {} if shardings is None else flatten_dict(shardings["params"])
    tensors = find_tensors(Path(folder))
    _check_tensors(Path(folder), tensors, config)
    params = {w.path: _load_weight(tensors, w, config, places.get(w.path)) for w in weight_table(config)}
    return {"params": unflatten_dict(params)}


def _check_tensors(folder: Path, tensors: dict[str, Stored], config: ModelConfig) -> None:
    """All tensors are there, of the right shape and of a float type, and no other one is."""
    expected = {key: weight.hf_shape for key, weight, _ in hf_tensors(config)}
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    expected.setdefault(LM_HEAD, expected[EMBEDDING])
    for key, tensor in sorted(tensors.items()):
        if key.endswith("rotary_emb.inv_freq"):  # a constant that old exports carry along
            continue
        where = f"{tensor.path}: tensor {key}"
        if key not in expected:
            raise UserError(f"{tensor.path}: unexpected tensor {key}")
        if tensor.shape != expected[key]:
            raise UserError(f"{where} has shape {tensor.shape}, config.json makes it {expected[key]}")
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where} has type {tensor.dtype}, only F32, BF16 and F16 are read")
    if config.tied and LM_HEAD in tensors:
        head, embedding = tensors[LM_HEAD], tensors[EMBEDDING]
        if not all(map(np.array_equal, head.view(), embedding.view())):  # row by row, to hold no more of them
            raise UserError(f"{head.path}: {LM_HEAD} differs from {EMBEDDING}, but config.json ties the two")


def _load_weight(tensors: dict[str, Stored], weight: Weight, config: ModelConfig, sharding) -> jax.Array:
    shape = (config.layers,) * weight.stacked + weight.our_shape
    if sharding is None:
        return jnp.asarray(_read_piece(tensors, weight, config, tuple(map(slice, shape))))
    devices_of = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        index = tuple(slice(*bound) for bound in bounds)
        shards += _place(_read_piece(tensors, weight, config, index), devices)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_piece(tensors: dict[str, Stored], weight: Weight, config: ModelConfig, index: tuple) -> np.ndarray:
    """`parameter[index]`, in memory in the order of the files' axes: JAX transposes faster than NumPy."""
    if not weight.stacked:
        return np.array(weight.from_hf(tensors[weight.key].view())[index], config.param_dtype)
    layers, rest = range(config.layers)[index[0]], index[1:]
    views = [weight.from_hf(tensors[weight.key.format(layer=layer)].view())[rest] for layer in layers]
    return np.stack(views, dtype=config.param_dtype, casting="unsafe")


def _place(piece: np.ndarray, devices: list) -> list[jax.Array]:
    """A copy on each device; done when it returns, so that the next piece is not read beside this one."""
    return jax.block_until_ready([jax.device_put(piece, device) for device in devices])


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
    name beside its place and renamed at the end, so it is whole or not there.

    The host holds one file's tensors at a time. Where `params` lie on the devices of several processes, all of them
    call this: tensors are gathered one at a time, for which every device needs room, and the first process
    alone writes. If it cannot, it raises its error and the others a `UserError`.
    """
    folder = Path(folder).resolve()
    numerics = {name: getattr(config, name) for name in NUMERICS}
    if model_config(hf_config, **numerics) != config:
        raise UserError(f"{folder}: the config.json to write describes another model than the parameters")
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype = {dtype!r} is not written, only float32 and bfloat16")
    names = REWARD_MODELS if config.value_head else ARCHITECTURES
    kept = hf_config | {"architectures": [names[hf_config["model_type"]]], "torch_dtype": dtype, "dtype": dtype}
    if generation_config is None:
        ids = {name: hf_config.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        generation_config = {name: value for name, value in ids.items() if value is not None}
    flat = flatten_dict(params["params"])
    spread = not all(leaf.is_fully_addressable for leaf in flat.values())
    attempt = hosts.attempt if spread else _do
    partial = files.partial_of(folder)
    try:
        attempt(_begin, folder, partial, {"config.json": kept, "generation_config.json": generation_config}, tokenizer)
        shards, index = _plan_files(config, np.dtype(dtype), max_shard_bytes)
        for name, entries in shards.items():
            tensors = {}
            for key, weight, layer in entries:
                whole = _gather(flat[weight.path], layer)
                if hosts.first() or not spread:
                    # safetensors writes the memory of an array as it lies, so a transposed view would be scrambled
                    tensors[key] = np.ascontiguousarray(weight.to_hf(whole), dtype)
            attempt(save_file, tensors, partial / name, metadata={"format": "pt"})
        if len(shards) > 1:
            attempt(_write_json, partial / INDEX, index)
        attempt(os.replace, partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _do(write, *args, **kwargs) -> None:
    write(*args, **kwargs)


def _begin(folder: Path, partial: Path, documents: dict[str, dict], tokenizer) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there and not an empty folder; remove it or choose another name")
    partial.mkdir(parents=True)
    for name, content in documents.items():
        _write_json(partial / name, content)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)


def _write_json(path: Path, content: dict) -> None:
    files.write_json(path, content, indent=2, sort_keys=True)


def _plan_files(config: ModelConfig, dtype: np.dtype, max_bytes: int) -> tuple[dict[str, list], dict]:
    """Entries of `hf_tensors` by file, each file of at most `max_bytes` or one tensor, and the index of them all."""
    shards, sizes = [], []
    for entry in hf_tensors(config):
        size = math.prod(entry[1].hf_shape) * dtype.itemsize
        if not shards or sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(entry)
        sizes[-1] += size
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    files = dict(zip(names if len(shards) > 1 else [SINGLE], shards))
    weight_map = {key: name for name, shard in files.items() for key, _, _ in shard}
    return files, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}


def _gather(leaf: jax.Array, layer: int | None) -> np.ndarray:
    """One tensor in our order of axes, from wherever it lies."""
    array = leaf if layer is None else leaf[layer]
    return np.asarray(array) if array.is_fully_addressable else process_allgather(array, tiled=True)
