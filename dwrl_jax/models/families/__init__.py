"""Families of models. A family turns the content of config.json into a `ModelConfig`.

Each family is a file here. The file's name is the `model_type` in config.json, and the file ends in
`FAMILY = Family(...)`. `parts.py` has the code that several families share, `presets.py` collects published shapes.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import values
from dwrl_jax.models.transformer import ModelConfig

SHARED = ("parts", "presets", "values")  # files here that are not families
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# fields of ModelConfig that config.json does not have
NUMERICS = ("dtype", "param_dtype", "remat", "attention", "balance")


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ only in their sizes.

    `shape(hf_config)` gives the fields of `ModelConfig` except NUMERICS and `value_head`. It raises KeyError for a
    missing key and UserError for a feature that the decoder does not support. `tensor_name` maps the name of a tensor
    in Llama's files, as `hf.table` lists it, to its name in this family's files. "{layer}" in a name stands for the
    number of the layer.
    """

    language_model: str  # the class in transformers, as in config.json's "architectures"
    reward_model: str  # the class in transformers with a value head in the place of the lm-head
    shape: Callable[[dict], dict]
    presets: Mapping[str, dict] = dataclasses.field(default_factory=dict)  # published config.json by short name
    tensor_name: Callable[[str], str] = str
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict)  # transformers' values of absent keys
    small: Mapping[str, object] = dataclasses.field(default_factory=dict)  # keys of a small version (presets.shrink)


def names() -> list[str]:
    """The names of the families: the values of model_type in config.json."""
    return sorted({path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - set(SHARED))


def load(name: str) -> Family:
    return importlib.import_module(f"{__name__}.{name}").FAMILY


def family_of(hf_config: dict) -> Family:
    """The family of a config.json. UserError if it has no file here."""
    name = hf_config.get("model_type")
    if name not in names():
        raise UserError(
            f"config.json: model_type = {name!r} is not supported; choose a model of {', '.join(names())}, "
            'or add its family, which is one file ("A family of models" in CONTRIBUTING.md)'
        )
    return load(name)


def text_half(hf_config: dict) -> dict:
    """The config.json of a multimodal model's text half, if that is of a family here; else the config.json itself."""
    text, outer = hf_config.get("text_config"), hf_config.get("model_type")
    if not isinstance(text, dict) or text.get("model_type") not in names() or outer in names():
        return hf_config
    family = load(text["model_type"])
    rewards = any("SequenceClassification" in name for name in hf_config.get("architectures") or ())
    kept = {key: value for key, value in hf_config.items() if key not in ("text_config", "vision_config", "model_type")}
    return (
        dict(family.defaults)
        | kept
        | text
        | {
            "architectures": [family.reward_model if rewards else family.language_model],
            **{key: hf_config[key] for key in SPECIAL_TOKENS if hf_config.get(key) is not None},
        }
    )


def read_config(folder) -> dict:
    """The folder's config.json. UserError if it is missing, no JSON object, or has impossible values."""
    path = Path(folder) / "config.json"
    content = read_json(path)
    parts = [part for part in (content, content.get("text_config")) if isinstance(part, dict)]
    if any(part.get("model_type") in names() for part in parts):
        for part in parts:
            values.check(path, part)
    return content


def read_json(path: Path) -> dict:
    if path.exists() and not path.is_file():  # reading a pipe or a device may not end
        raise UserError(f"{path}: no file; is it a model folder?")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is it a model folder?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def model_config(hf_config: dict, **numerics) -> ModelConfig:
    """The `ModelConfig` of a config.json. `numerics` gives the fields that are named in NUMERICS.

    UserError for an unknown family, for a missing key and for a feature that the decoder does not support.
    """
    family = family_of(hf_config)
    try:
        shape = family.shape(dict(family.defaults) | hf_config)
    except KeyError as error:
        raise UserError(f"config.json: the key {error.args[0]!r} is missing") from error
    if numerics.get("balance") and not shape.get("experts"):
        raise UserError(f"model.balance={numerics['balance']}: the model has no experts; leave it at 0")
    _check_heads(shape)
    outputs = _outputs(hf_config) if hf_config.get("architectures") == [family.reward_model] else 0
    return ModelConfig(**shape, value_head=outputs, **numerics)


def _check_heads(shape: Mapping) -> None:
    """UserError for heads that cannot share keys and values, or cannot be turned by a rotary embedding."""
    heads, shared, size = (shape[name] for name in ("heads", "kv_heads", "head_dim"))
    if heads % shared:
        raise UserError(
            f"config.json: num_attention_heads = {heads} is no multiple of num_key_value_heads = {shared}; correct them"
        )
    if not size or size % 2:
        raise UserError(f"config.json: the size of a head is {size}, but a rotary embedding needs an even one")
    if shape.get("experts") and not 1 <= shape["experts_per_token"] <= shape["experts"]:
        raise UserError(
            f"config.json: num_experts_per_tok = {shape['experts_per_token']} of {shape['experts']} experts; "
            "it must be from 1 to their number"
        )


def with_value_head(hf_config: dict, pad_id: int | None, outputs: int = 1) -> dict:
    """The config.json of the same model with a value head of `outputs` outputs in the place of the lm-head.

    A single output is a reward. transformers reads the outputs at the last token that is not `pad_id`. If `pad_id` is
    None, transformers accepts only a single text at a time.
    """
    labels = ["reward"] if outputs == 1 else [f"embedding_{i}" for i in range(outputs)]
    return hf_config | {
        "architectures": [family_of(hf_config).reward_model],
        "num_labels": outputs,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "pad_token_id": pad_id,
    }


def labelled(hf_config: dict, outputs: int) -> dict:
    """The config.json of a model whose value head has so many outputs. UserError if it says another number."""
    names = hf_config.get("id2label") or {}
    said = {len(names), hf_config.get("num_labels")} - {0, None}
    if said and outputs not in said:
        raise UserError(
            f"config.json: num_labels or id2label say {min(said)} outputs, but the value head has {outputs}"
        )
    if len(names) != outputs:
        names = {str(i): f"LABEL_{i}" for i in range(outputs)}
    return hf_config | {
        "architectures": [family_of(hf_config).reward_model],
        "num_labels": outputs,
        "id2label": names,
        "label2id": {name: int(i) for i, name in names.items()},
    }


def _outputs(hf_config: dict) -> int:
    """The number of outputs of a model with a value head. transformers does not write the labels of two outputs."""
    return len(hf_config.get("id2label") or ()) or hf_config.get("num_labels") or 2
