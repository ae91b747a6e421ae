"""The model that a run starts from: its parameters, and with adapters the weights that stay as they are."""

import dataclasses
import os
from pathlib import Path

import jax
from ml_collections import ConfigDict

from dwrl_jax.core import hosts, sharding
from dwrl_jax.core.names import ARCHITECTURE
from dwrl_jax.models import frozen, hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import ModelConfig, axis_names


def lora_settings(config: ConfigDict) -> LoraSettings | None:
    """The adapters of a run; None where all weights are trained."""
    if not config.lora.rank:
        return None
    return LoraSettings(**config.lora.to_dict() | {"targets": tuple(config.lora.targets)})


def load_start(
    config: ConfigDict, folder: Path, shape: ModelConfig, mesh: jax.sharding.Mesh, kept: frozen.Frozen | None = None
):
    """The starting model's parameters. A language model gets a fresh value head where `shape` has a value head.

    In a run with adapters the weights of a PEFT folder are its base's, and its own adapters stand beside them. They
    must be the weights that the adapters in the workdir belong to, whose lora.json is `kept`.
    """
    if kept:
        frozen.check(kept, folder)
    places, settings = sharding.shardings(mesh, axis_names(shape)), lora_settings(config)
    hf_config = hf.describe(folder, low_rank=settings is None).hf_config
    fresh = shape.value_head and not model_config(hf_config).value_head
    if settings is None:
        params = hf.load_params(folder, shape, head=not fresh, shardings=places)
    else:
        params = frozen.begin(folder, shape, settings, mesh, head=not fresh)
    if not fresh:
        return params
    trained = dataclasses.replace(shape, param_dtype=config.model.param_dtype)
    scale = config.objective.get("head_init", 1.0)
    return params | hf.with_value_head(params, trained, config.seed, scale, shardings=places)


@hosts.by_first
def keep_lora(config: ConfigDict, workdir: Path, folder: Path) -> None:
    """Write down the adapters of a run and the model that they belong to, so that the checkpoints can be read."""
    settings = lora_settings(config)
    if settings is None:
        return
    name = config.model.path
    if not name:
        name = os.path.relpath(folder, workdir)
    elif folder == Path(name).expanduser():
        name = str(folder.absolute())
    frozen.write(workdir / ARCHITECTURE, frozen.Frozen(settings, name, frozen.model_hash(folder)))
