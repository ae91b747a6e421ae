"""Families of models: what config.json says of a model, as `ModelConfig`.

A family is one file here. It is found by the file's name, which is the `model_type` of its config.json, and ends in
`FAMILY = Family(...)`. `parts.py` has what several families share, `presets.py` gathers their published shapes.
"""

import dataclasses
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.transformer import ModelConfig

SHARED = ("parts", "presets")  # files here that are no family
NUMERICS = ("dtype", "param_dtype", "remat", "attention")  # fields of ModelConfig that no config.json has


@dataclasses.dataclass(frozen=True)
class Family:
    """Models that differ in their sizes alone.

    `shape(hf_config)` gives the fields of `ModelConfig` without NUMERICS and `value_head`. It raises KeyError for a
    missing key and UserError for what the decoder does not do. `tensor_name` turns the name that a tensor has in
    Llama's files, as `hf.table` lists them, into the name that it has in this family's. "{layer}" in a name stands
    for the number of the layer.
    """

    language_model: str  # transformers' class, in config.json's "architectures"
    reward_model: str  # its class with a value head in the place of the lm-head
    shape: Callable[[dict], dict]
    presets: Mapping[str, dict] = dataclasses.field(default_factory=dict)  # published config.json by short name
    tensor_name: Callable[[str], str] = str


def names() -> list[str]:
    """The families, by config.json's model_type."""
    return sorted({path.stem for path in Path(__file__).parent.glob("[!_]*.py")} - set(SHARED))


def load(name: str) -> Family:
    return importlib.import_module(f"{__name__}.{name}").FAMILY


def family_of(hf_config: dict) -> Family:
    """The family of a config.json; UserError for one without a file here."""
    name = hf_config.get("model_type")
    if name not in names():
        raise UserError(f"config.json: model_type = {name!r} is not supported; choose a model of {', '.join(names())}")
    return load(name)


def read_config(folder) -> dict:
    """The folder's config.json; `UserError` when it is missing or no JSON object."""
    return read_json(Path(folder) / "config.json")


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); is it a model folder?") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def model_config(hf_config: dict, **numerics: str) -> ModelConfig:
    """`ModelConfig` of a config.json; `numerics` are its fields named in NUMERICS.

    `UserError` for an unknown family, for a missing key and for what the decoder does not do.
    """
    family = family_of(hf_config)
    try:
        shape = family.shape(hf_config)
    except KeyError as error:
        raise UserError(f"config.json: the key {error.args[0]!r} is missing") from error
    outputs = _outputs(hf_config) if hf_config.get("architectures") == [family.reward_model] else 0
    return ModelConfig(**shape, value_head=outputs, **numerics)


def with_value_head(hf_config: dict, pad_id: int | None, outputs: int = 1) -> dict:
    """The config.json of the same model with `outputs` outputs in the place of the lm-head; a single one is a reward.

    transformers reads them at the last token that is not `pad_id`, and takes one text at a time where it is None.
    """
    labels = ["reward"] if outputs == 1 else [f"embedding_{i}" for i in range(outputs)]
    return hf_config | {
        "architectures": [family_of(hf_config).reward_model],
        "num_labels": outputs,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "pad_token_id": pad_id,
    }


def _outputs(hf_config: dict) -> int:
    """The number of outputs of a model with a value head; transformers leaves out the labels of two."""
    return len(hf_config.get("id2label") or (0, 1))
