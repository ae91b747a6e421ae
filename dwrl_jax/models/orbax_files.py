"""Read the parameters of an Orbax checkpoint with TensorStore. Orbax itself is not needed.

A checkpoint folder has one folder for each saved step. In a step's folder `params/` is an OCDBT store of zarr arrays.
The name of an array is the dotted path of its parameter. `metrics/metrics` holds the step's metrics, if there are any.
"""

import json
from pathlib import Path

import jax
import numpy as np
import tensorstore
from flax.traverse_util import flatten_dict, unflatten_dict

from dwrl_jax.core import checksums
from dwrl_jax.core.errors import UserError

COMMITTED = "_CHECKPOINT_METADATA"  # written last, when all files of a step are complete


def steps(folder: Path) -> list[int]:
    """The saved steps in a checkpoint folder, in ascending order."""
    return sorted(int(path.name) for path in folder.glob("[0-9]*") if (path / COMMITTED).is_file())


def choose(folder: Path, which: str, metric: str) -> Path:
    """The folder of a step: "last", "best" (the largest `metric`), or a number. UserError if there is no such step."""
    saved = steps(folder)
    if which == "best":
        scores = {step: _metrics(folder / str(step)).get(metric) for step in saved}
        saved_with = [step for step in saved if scores[step] is not None]
        step = max(saved_with, key=lambda step: (scores[step], step), default=None)
    else:
        step = max(saved, default=None) if which == "last" else int(which) if which.isdigit() else None
    if step not in saved:
        raise UserError(f"checkpoint {which!r} is not in {folder}: steps there are {saved or 'none'}")
    return folder / str(step)


def damage(step: Path, part: str = "") -> str | None:
    """Why a step's folder cannot be used, in words; None if it can. Older checkpoints have no checksums."""
    if not (step / COMMITTED).is_file():
        return f"{COMMITTED} is missing"
    return checksums.damage(step, part)


def check(step: Path, part: str = "params/") -> None:
    """UserError if a part of a step's folder is not what was written."""
    reason = damage(step, part)
    if reason is not None:
        raise UserError(f"{step}: damaged: {reason}; choose another --checkpoint, or train again from the one before")


def load_params(step: Path, like):
    """The parameters in a step's folder. `like` is a tree of shapes with dtypes and shardings; the result matches it.

    A process reads only what its own devices hold. UserError if a parameter is missing or has another shape.
    """
    return unflatten_dict({path: _read(step / "params", path, leaf) for path, leaf in flatten_dict(like).items()})


def _read(store: Path, path: tuple[str, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    name = ".".join(path)
    where = {"driver": "ocdbt", "base": f"file://{store.resolve()}/", "path": f"{name}/"}
    try:
        array = tensorstore.open({"driver": "zarr", "kvstore": where}, open=True, read=True).result()
    except Exception as error:  # TensorStore raises several types of error for broken files
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{store}: parameter {name} cannot be read ({reason})") from None
    if array.shape != leaf.shape:
        raise UserError(f"{store}: parameter {name} has shape {array.shape}, the model's is {leaf.shape}")

    def piece(index) -> np.ndarray:
        return np.asarray(array[index].read().result()).astype(leaf.dtype)

    return jax.make_array_from_callback(leaf.shape, leaf.sharding, piece)


def _metrics(step: Path) -> dict:
    path = step / "metrics" / "metrics"
    return json.loads(path.read_text()) if path.is_file() else {}
