"""The places of a model's tensors in the safetensors files of its folder."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import read_json
from dwrl_jax.models.hf.foreign import no_weights, refuse_pointer

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}
EIGHT_BITS = {"F8_E4M3": jnp.float8_e4m3fn, "F8_E8M0": jnp.float8_e8m0fnu}


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # in bytes from the beginning of the file

    def view(self) -> np.ndarray:
        """The tensor as a view of the file. Only the pages of the values that are copied out are read."""
        dtype = (FLOATS | EIGHT_BITS)[self.dtype]
        return np.asarray(np.memmap(self.path, dtype, "r", self.offset, self.shape))


class Scaled(NamedTuple):
    """A matrix of 8-bit floats, times a scale for each block, for each row or for the whole matrix."""

    codes: Stored
    scales: Stored
    block: tuple[int, int] | None  # rows and columns of a block

    @property
    def path(self) -> Path:
        return self.codes.path

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def fits(self) -> bool:
        """Whether there is a scale for every value."""
        if len(self.shape) != 2 or self.codes.dtype != "F8_E4M3":
            return False
        if self.block and len(self.scales.shape) == 2:
            return self.scales.shape == tuple(-(-size // part) for size, part in zip(self.shape, self.block))
        return math.prod(self.scales.shape) in (1, self.shape[0])

    def view(self) -> np.ndarray:
        """The whole matrix in float32, in memory."""
        scales = self.scales.view().astype(np.float32)
        if self.block and scales.ndim == 2:
            for axis, part in enumerate(self.block):
                scales = np.repeat(scales, part, axis).take(np.arange(self.shape[axis]), axis)
        else:
            scales = scales.reshape(-1, 1)
        return self.codes.view().astype(np.float32) * scales


class Merged(NamedTuple):
    """A matrix of a model with a low-rank change: base + scale up down, with down [r, into] and up [out, r]."""

    base: Stored | Scaled
    down: Stored
    up: Stored
    scale: float

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def dtype(self) -> str:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def view(self) -> np.ndarray:
        """The whole matrix in float32, in memory."""
        down, up = (x.view().astype(np.float32) for x in (self.down, self.up))
        return self.base.view().astype(np.float32) + self.scale * (up @ down)


Tensors = dict[str, Stored | Scaled | Merged]


def find_tensors(folder: Path) -> tuple[Tensors, list[str]]:
    """The tensors of the model in a folder by key, and notes about what was left aside.

    A single file goes before an index, as in transformers, unless it is empty. An index says in which file each tensor
    is read. UserError if there are no such files, or if one of them is absent or not readable.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.exists():
        tensors = read_header(single)
        if not index.exists() or set(_places(index).values()) == {SINGLE}:
            return tensors, []
        if any(map(_has_values, tensors.values())):
            return tensors, [f"{single} is read; the files of {INDEX} beside it are not"]
        tensors, notes = _indexed(folder)
        return tensors, [f"{single} is empty; the files of {INDEX} are read", *notes]
    if not index.exists():
        raise no_weights(folder)
    return _indexed(folder)


def _places(index: Path) -> dict[str, str]:
    """The name of the file of each tensor. UserError for a name that leads out of the folder."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: it has no weight_map; download it again")
    for key, name in places.items():
        if not (isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name):
            raise UserError(f"{index}: {key} is in {name!r}, which is no *.safetensors file of this folder")
    return places


def _indexed(folder: Path) -> tuple[Tensors, list[str]]:
    places = _places(folder / INDEX)
    by_file = {name: read_header(folder / name) for name in sorted(set(places.values()))}
    for key, name in places.items():
        if key not in by_file[name]:
            raise UserError(f"{folder / name}: tensor {key} is missing, which {INDEX} puts there; download it again")
    twice = sorted(key for name, tensors in by_file.items() for key in tensors if places.get(key, name) != name)
    notes = [f"{folder}: {key} stands in two files; it is read from {places[key]}, as {INDEX} says" for key in twice]
    return {key: by_file[name][key] for key, name in places.items()}, notes


def read_header(path: Path) -> Tensors:
    """The tensors of a safetensors file by key. UserError if it is not readable."""
    refuse_pointer(path)
    try:
        with safe_open(path, "numpy"), path.open("rb") as file:  # safe_open checks the header against the file
            start = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start))
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing, although {INDEX} names it; download it again") from error
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: no readable safetensors file, perhaps cut off; download it again ({error})"
        ) from error
    header.pop("__metadata__", None)
    return {
        key: Stored(path, entry["dtype"], tuple(entry["shape"]), 8 + start + entry["data_offsets"][0])
        for key, entry in header.items()
    }


def _has_values(tensor: Stored) -> bool:
    return math.prod(tensor.shape) > 0
