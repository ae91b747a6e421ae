"""lora.json: what a run's adapters are, and the model that they belong to. The workdir of a run with adapters has it.

A checkpoint of such a run holds adapters alone. So whoever reads it needs the model, and the hash shows that it is the
same one.
"""

import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np

from dwrl_jax.core import files, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf, lora
from dwrl_jax.models.hf.tensor_files import Scaled, Stored
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import ModelConfig, axis_names

LORA = "lora.json"
BLOCK = 4096  # bytes that are hashed at the beginning, in the middle and at the end of a tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    """The adapters' settings, and the folder or hub id of their model. A relative path begins at the workdir."""

    settings: LoraSettings
    model: str
    hash: str


def write(folder: Path, frozen: Frozen) -> None:
    files.write_json(folder / LORA, dataclasses.asdict(frozen))


def read(folder: Path) -> Frozen | None:
    """The content of lora.json; None for a run that trains all weights."""
    if not (folder / LORA).is_file():
        return None
    content = files.read_json(folder / LORA)
    try:
        settings = dict(content["settings"])
        settings["targets"] = tuple(settings["targets"])
        return Frozen(LoraSettings(**settings), content["model"], content["hash"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / LORA}: not as a run writes it ({error}); copy the workdir again") from None


def folder_of(frozen: Frozen, workdir: Path, given: str | Path | None = None) -> Path:
    """The folder of the adapters' model: the `given` one, or the one that lora.json names.

    UserError if it is not there, or if it is another model.
    """
    beside = workdir / frozen.model
    try:
        folder = hf.resolve(str(given or (beside if beside.is_dir() else frozen.model)))
    except UserError as error:
        raise UserError(f"{workdir}: the model of its adapters is not there; name it by --start ({error})") from None
    check(frozen, folder)
    return folder


def check(frozen: Frozen, folder: Path) -> None:
    """UserError if the folder holds another model than the one that the adapters belong to."""
    if (there := model_hash(folder)) != frozen.hash:
        raise UserError(f"{folder}: not the model of the adapters: its hash is {there}, not {frozen.hash}")


def model_hash(folder: Path) -> str:
    """SHA-256, 16 digits, of all tensors' names, types and shapes, and of three blocks of each tensor's bytes."""
    digest = hashlib.sha256()
    for key, tensor in sorted(hf.describe(folder, low_rank=False).tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tensor.shape}".encode())
        for part in (tensor.codes, tensor.scales) if isinstance(tensor, Scaled) else (tensor,):
            for block in _blocks(part):
                digest.update(block)
    return digest.hexdigest()[:16]


def _blocks(tensor: Stored):
    data = tensor.view().reshape(-1).view(np.uint8)
    for start in (0, max(len(data) - BLOCK, 0) // 2, max(len(data) - BLOCK, 0)):
        yield data[start : start + BLOCK].tobytes()


def shape_of(config: ModelConfig, settings: LoraSettings) -> ModelConfig:
    """The model with the type of its frozen weights."""
    return dataclasses.replace(config, param_dtype=settings.base)


def adapter_places(config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh):
    """The sharding of each adapter."""
    return sharding.shardings(mesh, lora.adapter_axes(config, settings))


def load(folder: Path, config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh, head: bool = True):
    """The frozen weights {"params": ...} in their type. A value head, which is trained, is in float32."""
    places = sharding.shardings(mesh, axis_names(config))
    shape = shape_of(config, settings)
    return hf.load_params(folder, shape, head=head, shardings=places, low_rank=False, head_dtype="float32")


def merge(frozen: Frozen, folder: Path, trained, config: ModelConfig, mesh: jax.sharding.Mesh):
    """Parameters {"params": ...} in `config.param_dtype`, with what a run trained in them."""
    start = load(folder, config, frozen.settings, mesh, head=not config.value_head)
    places = sharding.shardings(mesh, axis_names(config))

    def whole(start, trained):
        start = jax.tree.map(lambda x: x.astype(config.param_dtype), start)
        return lora.merged(lora.variables(frozen.settings, start, trained))

    return jax.jit(whole, out_shardings=places)(start, trained)
