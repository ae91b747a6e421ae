"""Write parameters to a Hugging Face folder."""

import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental.multihost_utils import process_allgather
from safetensors.numpy import save_file

from dwrl_jax.core import faults, files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import NUMERICS, SPECIAL_TOKENS, family_of, model_config
from dwrl_jax.models.hf.table import hf_tensors
from dwrl_jax.models.hf.tensor_files import INDEX, SINGLE
from dwrl_jax.models.transformer import ModelConfig

DTYPES = ("float32", "bfloat16", "float16")


def save_model(
    folder,
    params,
    config: ModelConfig,
    hf_config: dict,
    *,
    tokenizer=None,
    generation_config: dict | None = None,
    documents: dict[str, dict] | None = None,
    dtype: str = "float32",
    max_shard_bytes: int = 5 * 2**30,
) -> None:
    """Write a folder that `transformers` and vLLM load: configs, tokenizer files and safetensors in `dtype`.

    `hf_config` is the config.json that `config` was made from. `documents` gives further JSON files by name. The
    folder must be empty or absent, because an export replaces nothing; otherwise UserError. The folder is written
    under a hidden name and renamed at the end, so it is either complete or absent.

    The host holds the tensors of a single file at a time. If `params` are on devices of several processes, all
    processes must call this. Tensors are gathered one after another, so each device needs memory for a whole tensor.
    Only the first process writes. If it fails, it raises its error, and the other processes raise a UserError.
    """
    folder = Path(folder).resolve()
    numerics = {name: getattr(config, name) for name in NUMERICS}
    if model_config(hf_config, **numerics) != config:
        raise UserError(f"{folder}: the new config.json does not describe the model of the parameters")
    if dtype not in DTYPES:
        raise UserError(f"dtype = {dtype!r} is not supported; choose {', '.join(DTYPES)}")
    documents = _configs(config, hf_config, generation_config, dtype) | (documents or {})
    entries = list(hf_tensors(config, family_of(hf_config).tensor_name))
    shards, index = _plan_files(entries, np.dtype(dtype), max_shard_bytes)
    flat = flatten_dict(params["params"])
    spread = not all(leaf.is_fully_addressable for leaf in flat.values())
    attempt = hosts.attempt if spread else _do
    partial = files.partial_of(folder)
    try:
        attempt(begin_folder, folder, partial, documents, tokenizer)
        for name, entries in shards.items():
            tensors = {}
            for key, weight, layer in entries:
                whole = gather(flat[weight.path], layer)
                if hosts.first() or not spread:
                    # safetensors writes an array's memory as it is: the values of a transposed view would be mixed up
                    with np.errstate(over="ignore"):
                        tensors[key] = np.ascontiguousarray(weight.to_hf(whole), dtype)
            attempt(_write_tensors, tensors, partial / name, dtype)
        if len(shards) > 1:
            attempt(_write_json, partial / INDEX, index)
        attempt(os.replace, partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tensors(tensors: dict[str, np.ndarray], path: Path, dtype: str) -> None:
    """Write a safetensors file. UserError if a number is not finite, or too large for `dtype`."""
    for key, tensor in tensors.items():
        if not (np.isfinite(tensor.min()) and np.isfinite(tensor.max())):
            raise UserError(
                f"tensor {key} has numbers that are not finite in {dtype}; "
                "give --dtype=float32, or an earlier checkpoint if it is no matter of the type"
            )
    save_file(tensors, path, metadata={"format": "pt"})
    faults.point("export")


def _configs(config: ModelConfig, hf_config: dict, generation_config: dict | None, dtype: str) -> dict[str, dict]:
    """The contents of config.json and generation_config.json for the written model."""
    family = family_of(hf_config)
    architecture = family.reward_model if config.value_head else family.language_model
    if generation_config is None:
        ids = {name: hf_config.get(name) for name in SPECIAL_TOKENS}
        generation_config = {name: value for name, value in ids.items() if value is not None}
    written = hf_config | {"architectures": [architecture], "torch_dtype": dtype, "dtype": dtype}
    return {"config.json": written, "generation_config.json": generation_config}


def _do(write, *args, **kwargs) -> None:
    write(*args, **kwargs)


def begin_folder(folder: Path, partial: Path, documents: dict[str, dict], tokenizer) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already there and not an empty folder; remove it or choose another name")
    partial.mkdir(parents=True)
    for name, content in documents.items():
        _write_json(partial / name, content)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)


def _write_json(path: Path, content: dict) -> None:
    files.write_json(path, content, indent=2, sort_keys=True)


def _plan_files(entries: list, dtype: np.dtype, max_bytes: int) -> tuple[dict[str, list], dict]:
    """The entries of `hf_tensors` by file, and the index of all files.

    A file has at most `max_bytes` bytes, unless its only tensor is larger.
    """
    shards, sizes = [], []
    for entry in entries:
        size = math.prod(entry[1].hf_shape) * dtype.itemsize
        if not shards or sizes[-1] + size > max_bytes:
            shards.append([])
            sizes.append(0)
        shards[-1].append(entry)
        sizes[-1] += size
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    by_file = dict(zip(names if len(shards) > 1 else [SINGLE], shards))
    weight_map = {key: name for name, shard in by_file.items() for key, _, _ in shard}
    return by_file, {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}


def gather(leaf: jax.Array, layer: int | None) -> np.ndarray:
    """A tensor in our order of axes, gathered from all devices that hold it."""
    array = leaf if layer is None else leaf[layer]
    return np.asarray(array) if array.is_fully_addressable else process_allgather(array, tiled=True)
