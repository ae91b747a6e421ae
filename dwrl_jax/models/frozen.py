"""lora.json: what a run's adapters are, and the model that they belong to. The workdir of a run with adapters has it.

A checkpoint of such a run holds adapters alone. So whoever reads it needs the model, and the hash shows that it is the
same one.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

import jax
import numpy as np

from dwrl_jax.core import files, sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models import hf, lora, quantised
from dwrl_jax.models.hf import peft_folder
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
    return dataclasses.replace(config, **settings.numerics)


def check_kept(config: ModelConfig) -> None:
    """UserError where the model's frozen weights cannot be kept as `config` says."""
    if config.quantised and config.experts:
        raise UserError(
            f"lora.base={config.quantised!r}: experts of a mixture are not kept in few bits; give lora.base='bfloat16'"
        )


def adapter_places(config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh):
    """The sharding of each adapter."""
    return sharding.shardings(mesh, lora.adapter_axes(config, settings))


def load(folder: Path, config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh, head: bool = True):
    """The frozen weights {"params": ...} as they are kept. A value head, which is trained, is in float32.

    Matrices in few bits are made one after another, so that a single one is in memory in bfloat16.
    """
    shape = shape_of(config, settings)
    given = dataclasses.replace(shape, quantised="")
    return hf.load_params(
        folder,
        given,
        head=head,
        shardings=sharding.shardings(mesh, axis_names(given)),
        low_rank=False,
        head_dtype="float32",
        keep=_in_few_bits(shape, mesh) if shape.quantised else None,
    )


def begin(folder: Path, config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh, head: bool = True):
    """`load`, with the adapters of a PEFT folder beside its base's weights."""
    params = load(folder, config, settings, mesh, head)
    hf_config = hf.describe(folder, low_rank=False).hf_config
    given = peft_folder.read(folder, lora.chosen(config, settings.targets), config, settings, hf_config)
    return params | ({} if given is None else {"lora": jax.device_put(given, adapter_places(config, settings, mesh))})


def _kernels(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """The shape of each matrix of a layer, and the names of its axes."""
    layers = axis_names(dataclasses.replace(config, quantised=""))["params"]["layers"]
    boxes = {name: part["kernel"] for name, part in layers.items() if "kernel" in part}
    return {name: (box.value.shape[1:], box.names[1:]) for name, box in boxes.items()}


def _in_few_bits(config: ModelConfig, mesh: jax.sharding.Mesh):
    """A function from the path of a parameter, and the parameter, to the same as `config.quantised` keeps it."""
    places = sharding.shardings(mesh, axis_names(config))["params"]["layers"]

    def of_layers(names, stacked):
        return jax.lax.map(lambda kernel: quantised.quantised(kernel, config.quantised, names), stacked)

    kernels = {name: names for name, (_, names) in _kernels(config).items()}
    programs = {  # matrices with the same axes share one
        names: jax.jit(functools.partial(of_layers, names), out_shardings=places[name]["kernel"])
        for name, names in kernels.items()
    }

    def keep(path, parameter):
        return programs[kernels[path[1]]](parameter) if path[-1] == "kernel" else parameter

    return keep


def restored(params, config: ModelConfig):
    """The tree of parameters with the matrices that their few bits stand for, in `config.param_dtype`."""
    if not config.quantised:
        return params
    layers = dict(params["params"]["layers"])
    for name, how in _kernels(config).items():
        restore = functools.partial(quantised.restored, config.quantised, *how, config.param_dtype)
        layers[name] = layers[name] | {"kernel": jax.vmap(restore)(layers[name]["kernel"])}
    return params | {"params": params["params"] | {"layers": layers}}


def whole_start(folder: Path, config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh):
    """Parameters {"params": ...} of the model that a run with frozen weights in few bits started from."""
    shape = shape_of(config, settings)
    places = sharding.shardings(mesh, axis_names(dataclasses.replace(shape, quantised="")))

    def whole(start):
        start = restored(start, shape)
        return lora.merged(lora.variables(settings, start, start))

    return jax.jit(whole, out_shardings=places)(begin(folder, shape, settings, mesh))


def merge(frozen: Frozen, folder: Path, trained, config: ModelConfig, mesh: jax.sharding.Mesh):
    """Parameters {"params": ...} in `config.param_dtype`, with what a run trained in them."""
    start = load(folder, config, frozen.settings, mesh, head=not config.value_head)
    places = sharding.shardings(mesh, axis_names(config))

    def whole(start, trained):
        start = restored(start, shape_of(config, frozen.settings))
        start = jax.tree.map(lambda x: x.astype(config.param_dtype), start)
        return lora.merged(lora.variables(frozen.settings, start, trained))

    return jax.jit(whole, out_shardings=places)(start, trained)
