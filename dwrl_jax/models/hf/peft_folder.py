"""PEFT's adapter folders and our adapters (`models/lora.py`), in both directions.

PEFT keeps A [r, inputs] and B [outputs, r] of a product, and of an embedding [V, D] A [r, V] and B [D, r]. Ours have
left = A^T and right = B^T with the axes of our matrices. Those of the lm-head [V, D] are left = B and right = A.
Each expert has products of its own, named as in transformers 4. With transformers 5, which joins the matrices of
experts, PEFT joins their adapters when it reads them.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from dwrl_jax.core import files, hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import family_of
from dwrl_jax.models.hf import peft_merge
from dwrl_jax.models.hf.save import begin_folder, gather
from dwrl_jax.models.hf.table import EMBEDDING, LM_HEAD, VALUE_HEAD, Weight, weight_table
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import ModelConfig


def read(folder: Path, chosen: list[Weight], config: ModelConfig, settings: LoraSettings, hf_config: dict):
    """The adapters in a folder of PEFT, for the `chosen` matrices. None for a folder of another kind.

    UserError if it has another rank, scale or choice of matrices than `settings`.
    """
    given = peft_merge.settings_of(folder)
    if given is None:
        return None
    parts = {key: x for key, x in peft_merge.parts_of(folder, given).items() if ".lora_" in key}
    _check(folder / peft_merge.SETTINGS, given, settings)
    tensor_name, tree = family_of(hf_config).tensor_name, {}
    for weight in chosen:
        copies = _copies(weight, config)
        pairs = [_pair(parts, key) for key in _keys(weight, tensor_name, copies)]
        if None in pairs:
            raise _other_matrices(folder, weight.key)
        made = [_ours(weight, *(x.view().astype(np.float32) for x in pair)) for pair in pairs]
        stacked = [np.stack(each).reshape(*copies, *each[0].shape) for each in zip(*made)]
        tree |= {(*weight.module, side): jnp.asarray(array) for side, array in zip(("left", "right"), stacked)}
    if parts:
        raise _other_matrices(folder, min(parts))
    return unflatten_dict(tree)


def _check(where: Path, given: dict, settings: LoraSettings) -> None:
    said = {
        "r": ("lora.rank", given.get("r", 8), settings.rank),
        "lora_alpha": ("lora.alpha", given.get("lora_alpha", 8), settings.alpha),
        "use_rslora": ("lora.rank_stabilised", bool(given.get("use_rslora")), settings.rank_stabilised),
    }
    for key, (ours, theirs, wanted) in said.items():
        if theirs != wanted:
            raise UserError(f"{where}: {key} = {theirs!r}, but {ours} = {wanted!r}; give --config.{ours}={theirs}")
    for key in ("rank_pattern", "alpha_pattern"):
        if given.get(key):
            raise UserError(f"{where}: {key}: training goes on with one rank and scale alone; {peft_merge.MERGE}")


def _other_matrices(folder: Path, key: str) -> UserError:
    return UserError(
        f"{folder}: lora.targets are not the matrices of this adapter: {key} is on one side alone; "
        "give the target_modules of its adapter_config.json"
    )


def _copies(weight: Weight, config: ModelConfig) -> tuple[int, ...]:
    """The leading axes of our parameter: layers, and experts; none outside the layers."""
    return (config.layers,) * weight.stacked + (config.experts,) * weight.by_expert


def _keys(weight: Weight, tensor_name, copies: tuple[int, ...]) -> Iterator[str]:
    """The names of a parameter's tensors, those of all experts of a layer after those of the layer before it."""
    for place in np.ndindex(copies):
        yield tensor_name(weight.key).format(**dict(zip(("layer", "expert"), place)))


def _names(key: str) -> tuple[str, str]:
    """The names of A and B of a matrix. PEFT stores those of an embedding without `.weight`."""
    module = key.removesuffix(".weight")
    if module.endswith("embed_tokens"):
        return f"{module}.lora_embedding_A", f"{module}.lora_embedding_B"
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _pair(parts: dict, key: str):
    """A and B, taken out of `parts`; names may lack the beginning of a whole model's."""
    for start in (key, key.partition(".")[2]):
        names = _names(start)
        if all(name in parts for name in names):
            return tuple(parts.pop(name) for name in names)
    return None


def _ours(weight: Weight, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if weight.key == LM_HEAD:
        return b, a
    if weight.key == EMBEDDING:
        return a.T, b.T
    outputs, inputs = weight.groups
    return a.T.reshape(*inputs, -1), b.T.reshape(-1, *outputs)


def _theirs(weight: Weight, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if weight.key == LM_HEAD:
        return right, left
    rank = left.shape[-1]
    return left.reshape(-1, rank).T, right.reshape(rank, -1).T


def save(
    folder,
    trained,
    chosen: list[Weight],
    config: ModelConfig,
    hf_config: dict,
    settings: LoraSettings,
    base: str,
    *,
    tokenizer=None,
    documents: dict[str, dict] | None = None,
) -> None:
    """Write a folder that PEFT loads, in float32: the adapters, and a value head whole. `base` names the model.

    All processes call this; the first one writes. The folder must be empty or absent, otherwise UserError.
    """
    if config.tied and any(weight.key == EMBEDDING for weight in chosen):
        raise UserError("PEFT leaves the head as it is where embed_tokens has an adapter; export the merged model")
    folder, family = Path(folder).resolve(), family_of(hf_config)
    if settings.rank_stabilised and any(weight.by_expert for weight in chosen):
        raise UserError("PEFT scales adapters of experts otherwise with lora.rank_stabilised; export the merged model")
    flat, tensors = flatten_dict(trained["lora"]), {}
    for weight in chosen:
        copies = _copies(weight, config)
        pair = [gather(flat[*weight.module, side], None) for side in ("left", "right")]
        for place, key in zip(np.ndindex(copies), _keys(weight, family.tensor_name, copies)):
            made = _theirs(weight, *(x[place] for x in pair))
            tensors |= {f"base_model.model.{name}": np.ascontiguousarray(x) for name, x in zip(_names(key), made)}
    head = next((w for w in weight_table(config, family.tensor_name) if w.path == ("value_head",)), None)
    if head:
        tensors[f"base_model.model.{head.key}"] = gather(trained["params"]["value_head"], None)
    said = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilised,
        "target_modules": sorted({family.tensor_name(weight.key).split(".")[-2] for weight in chosen}),
        "modules_to_save": [VALUE_HEAD.split(".")[0]] if head else None,
        "bias": "none",
        "inference_mode": True,
    }
    hosts.attempt(_write, folder, tensors, {peft_merge.SETTINGS: said} | (documents or {}), tokenizer)


def _write(folder: Path, tensors: dict, documents: dict[str, dict], tokenizer) -> None:
    partial = files.partial_of(folder)
    try:
        begin_folder(folder, partial, documents, tokenizer)
        save_file(tensors, partial / peft_merge.WEIGHTS, metadata={"format": "pt"})
        os.replace(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
