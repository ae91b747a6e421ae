"""The places of a model's tensors in the safetensors files of its folder."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = {"F32": np.float32, "BF16": jnp.bfloat16, "F16": np.float16}


class Stored(NamedTuple):
    """A tensor in a safetensors file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int  # in bytes from the beginning of the file

    def view(self) -> np.ndarray:
        """The tensor as a view of the file. Only the pages of the values that are copied out are read."""
        return np.asarray(np.memmap(self.path, FLOATS[self.dtype], "r", self.offset, self.shape))


def find_tensors(folder: Path) -> dict[str, Stored]:
    """The tensors in all safetensors files of the model, by key. UserError if a file is absent or not readable."""
    names = [SINGLE]
    if not (folder / SINGLE).exists():
        if not (folder / INDEX).exists():
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there")
        names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    tensors = {}
    for path in (folder / name for name in names):
        try:
            with safe_open(path, "numpy"), path.open("rb") as file:  # safe_open checks the header against the file
                start = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(start))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: no readable safetensors file ({error})") from error
        header.pop("__metadata__", None)
        for key, entry in header.items():
            offset = 8 + start + entry["data_offsets"][0]
            tensors[key] = Stored(path, entry["dtype"], tuple(entry["shape"]), offset)
    return tensors
