"""PEFT's adapter folders as changes of a base model's matrices, which are merged when the model is read."""

import math
import re
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import read_json
from dwrl_jax.models.hf.foreign import no_weights
from dwrl_jax.models.hf.tensor_files import Merged, Tensors, read_header

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGE = "merge it with peft (merge_and_unload, save_pretrained) and give the merged folder"
UNUSUAL = (  # settings that change the mathematics
    "use_dora",
    "fan_in_fan_out",
    "lora_bias",
    "use_qalora",
    "megatron_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
)
CHANGED_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base model's weights


def settings_of(folder: Path) -> dict | None:
    """The adapter's settings; None for a folder that is no adapter."""
    return read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else None


def base_name(folder: Path, settings: dict) -> str:
    """The path or hub id of the base model. A path may be relative to the adapter's folder."""
    name = settings.get("base_model_name_or_path")
    if not name or not isinstance(name, str):
        raise UserError(f"{folder / SETTINGS}: base_model_name_or_path is missing; write the base model's folder there")
    return str(folder / name) if (folder / name).is_dir() else name


def merge(folder: Path, settings: dict, base: Tensors, anchor: str, low_rank: bool = True) -> Tensors:
    """The base model's tensors with the adapter's changes: W + scale B A, with scale = alpha / r, or alpha / sqrt(r).

    A tensor that the adapter holds whole takes the place of the base's; without `low_rank` that is all. `anchor` is as
    in `plain_names`. UserError for an adapter of another kind.
    """
    parts = parts_of(folder, settings)
    merged, bare = dict(base), anchor[: anchor.index(".") + 1]
    for key, tensor in parts.items():
        name, _, kind = key.partition(".lora_")
        target = name + ".weight" if kind else key
        target = target if target in base or bare + target not in base else bare + target
        if not kind:
            merged[target] = tensor
        elif not low_rank:
            continue
        elif kind == "A.weight":
            up = parts.get(f"{name}.lora_B.weight")
            if target not in base or up is None or (up.shape[0], tensor.shape[1]) != base[target].shape:
                raise UserError(f"{tensor.path}: tensor {key} does not fit the base model's {target}")
            merged[target] = Merged(base[target], tensor, up, _scale(name, settings, rank=tensor.shape[0]))
        elif kind != "B.weight":
            raise UserError(f"{tensor.path}: tensor {key} is no plain LoRA, which alone is read; {MERGE}")
    return merged


def parts_of(folder: Path, settings: dict) -> Tensors:
    """The adapter's tensors, by their names without what PEFT puts around them."""
    _check(folder, settings)
    if not (folder / WEIGHTS).is_file():
        raise no_weights(folder)
    parts = {_plain(key): tensor for key, tensor in read_header(folder / WEIGHTS).items()}
    return {key: tensor for key, tensor in parts.items() if "original_module." not in key}


def _check(folder: Path, settings: dict) -> None:
    where, kind = folder / SETTINGS, settings.get("peft_type")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(map(_quick, patterns)):
        raise UserError(f"{where}: alpha_pattern = {patterns!r} is not read, only names with at most three repetitions")
    for alpha in (settings.get("lora_alpha", 8), *patterns.values()):
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise UserError(f"{where}: {alpha!r} is no number, as lora_alpha and alpha_pattern need it")
    if kind != "LORA":
        raise UserError(f"{where}: peft_type = {kind!r} is not read, only plain LORA; {MERGE}")
    for key in UNUSUAL:
        if settings.get(key):
            raise UserError(f"{where}: {key} = {settings[key]!r} is not read, only plain LoRA; {MERGE}")
    begun = settings.get("init_lora_weights")
    if isinstance(begun, str) and begun.startswith(CHANGED_BASES):
        raise UserError(f"{where}: init_lora_weights = {begun!r} changed the base model's weights; {MERGE}")


def _quick(pattern: str) -> bool:
    """Whether a regular expression is one, and can take no long time: it repeats no group, and little else."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return not re.search(r"\)[*+?{]", pattern) and len(re.findall(r"[*+{]", pattern)) <= 3


def _plain(key: str) -> str:
    """The name of an adapter's tensor without what PEFT puts around it."""
    key = key.removeprefix("base_model.model.")
    return re.sub(r"\.(default|modules_to_save)(?=\.)", "", key)


def _scale(module: str, settings: dict, rank: int) -> float:
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
