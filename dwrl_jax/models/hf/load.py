"""Parameters from a Hugging Face folder, or new random parameters."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import family_of
from dwrl_jax.models.hf.folder import ModelFolder, describe
from dwrl_jax.models.hf.foreign import ORIGINAL
from dwrl_jax.models.hf.table import EMBEDDING, LM_HEAD, VALUE_HEAD, Weight, hf_tensors, weight_table
from dwrl_jax.models.hf.tensor_files import FLOATS, Tensors
from dwrl_jax.models.transformer import Decoder, ModelConfig

HINTS = {  # by the beginning of an unexpected tensor's name
    "score": ": a bias or a deeper head of a reward model is not read, only score.weight",
    "v_head": ": the value head of a policy (TRL) is no reward model; take these tensors out to start from the model",
}


def random_params(config: ModelConfig, seed: int) -> dict:
    """New random parameters, without the names of their axes."""
    token = jnp.zeros((1, 1, 1), jnp.int32)
    return nn.meta.unbox(jax.jit(Decoder(config).init)(jax.random.key(seed), token, token))


def with_value_head(params, config: ModelConfig, seed: int, scale: float = 1.0, *, shardings=None) -> dict:
    """A language model's parameters with a value head [outputs, D] in the place of its lm-head.

    The head is drawn from scale * N(0, 1 / (D + 1)). `config` and `shardings` describe the result.
    """
    size = config.hidden_size

    def draw():
        head = scale * (size + 1) ** -0.5 * jax.random.normal(jax.random.key(seed), (config.value_head, size))
        return head.astype(config.param_dtype)

    place = None if shardings is None else shardings["params"]["value_head"]
    kept = {name: part for name, part in params["params"].items() if name != "lm_head"}
    return {"params": kept | {"value_head": jax.jit(draw, out_shardings=place)()}}


def load_params(
    folder,
    config: ModelConfig,
    *,
    head: bool = True,
    shardings=None,
    low_rank: bool = True,
    head_dtype: str | None = None,
    keep: Callable | None = None,
) -> dict:
    """{"params": ...} from config.json and the safetensors files of a folder, in `config.param_dtype`.

    A value head is in `head_dtype`, if that is given. `keep(path, parameter)` gives what stands in the place of each
    parameter as soon as it is read, such as the same in few bits.

    `shardings` is a tree like the result and gives the sharding of each leaf; None puts everything on the default
    device. `head=False` leaves out the lm-head and the value head. `low_rank` is as in `describe`. A process reads only
    the parts that its devices hold. It reads a single part of a parameter at a time, and once for all devices that hold
    the same part. The host needs memory for such a part beyond the result; 8-bit floats and merged adapters need it for
    a whole matrix.
    Processes send each other nothing. For a part with few columns of a matrix, the disk still reads the pages around
    them. UserError names a tensor that is missing, unknown, of another shape, of a quantised type or with numbers that
    are not finite, or a file that cannot be read.
    """
    places = {} if shardings is None else flatten_dict(shardings["params"])
    opened = describe(folder, low_rank=low_rank)
    name, tensors = family_of(opened.hf_config).tensor_name, opened.tensors
    if not head:
        config = dataclasses.replace(config, value_head=0, tied=True)
        tensors = {key: tensor for key, tensor in tensors.items() if key not in map(name, (LM_HEAD, VALUE_HEAD))}
    _check_tensors(opened, tensors, config, name)
    typed = {("value_head",): dataclasses.replace(config, param_dtype=head_dtype or config.param_dtype)}
    params, keep = {}, keep or (lambda _, parameter: parameter)
    for w in weight_table(config, name):
        params[w.path] = keep(w.path, _load_weight(tensors, w, typed.get(w.path, config), places.get(w.path)))
    return {"params": unflatten_dict(params)}


def _check_tensors(opened: ModelFolder, tensors: Tensors, config: ModelConfig, tensor_name) -> None:
    """UserError if a tensor is missing or unexpected, or has a wrong shape or a type that is not float."""
    folder, head_key = opened.path, tensor_name(LM_HEAD)
    expected = {key: weight.hf_shape for key, weight, _ in hf_tensors(config, tensor_name)}
    missing = sorted(expected.keys() - tensors.keys())
    unknown = min(tensors.keys() - expected.keys() - {head_key}, default=None)
    beside = f"; tensor {unknown} is there, which is not known{_hint(unknown)}" if unknown else ""
    if missing == [head_key]:
        raise UserError(
            f"{folder}: {head_key} is missing, and config.json has tie_word_embeddings = false; set it to true if the "
            f"head is the embedding; only a reward model (objective bt) can start without a head{beside}"
        )
    if missing:
        which = f"{len(missing)} tensors of the family {opened.hf_config['model_type']} are missing"
        raise UserError(f"{folder}: {which}, the first is {missing[0]}{beside}")
    if config.tied and head_key in tensors:  # a stored copy of the embedding
        if not opened.hf_config.get("tie_word_embeddings"):
            raise UserError(f"{folder}: {head_key} differs from {tensor_name(EMBEDDING)}, but the config ties the two")
        expected[head_key] = expected[tensor_name(EMBEDDING)]
    for key, tensor in sorted(tensors.items()):
        if key not in expected:
            raise UserError(f"{tensor.path}: unexpected tensor {key}{_hint(key)}")
        if tensor.shape != expected[key]:
            raise UserError(
                f"{tensor.path}: tensor {key} has shape {tensor.shape}, config.json makes it {expected[key]}"
            )
        if tensor.dtype not in FLOATS:
            raise UserError(
                f"{tensor.path}: tensor {key} has type {tensor.dtype}, only F32, BF16 and F16 are read: quantised "
                f"weights cannot be trained on; {ORIGINAL}"
            )


def _hint(key: str) -> str:
    return HINTS.get(key.split(".")[0], "")


def _load_weight(tensors: Tensors, weight: Weight, config: ModelConfig, sharding) -> jax.Array:
    shape = (config.layers,) * weight.stacked + (config.experts,) * weight.by_expert + weight.our_shape
    if sharding is None:
        return jnp.asarray(_read_piece(tensors, weight, config, tuple(map(slice, shape))))
    devices_of = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(axis.indices(size)[:2] for axis, size in zip(index, shape))
        devices_of.setdefault(bounds, []).append(device)
    shards = []
    for bounds, devices in devices_of.items():
        index = tuple(slice(*bound) for bound in bounds)
        shards += _place(_read_piece(tensors, weight, config, index), devices)
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _read_piece(tensors: Tensors, weight: Weight, config: ModelConfig, index: tuple) -> np.ndarray:
    """`parameter[index]`. Its memory keeps the order of axes in the file, because JAX transposes faster than NumPy."""
    if not weight.stacked:
        piece = np.array(weight.from_hf(tensors[weight.key].view())[index], config.param_dtype)
        return _finite(piece, tensors[weight.key].path, weight.key)
    layers, rest = range(config.layers)[index[0]], index[1:]
    experts, rest = (range(config.experts)[rest[0]], rest[1:]) if weight.by_expert else (range(1), rest)
    keys = [weight.key.format(layer=layer, expert=expert) for layer in layers for expert in experts]
    views = [weight.from_hf(tensors[key].view())[rest] for key in keys]
    piece = np.stack(views, dtype=config.param_dtype, casting="unsafe")
    for part, key in zip(piece, keys):
        _finite(part, tensors[key].path, key)
    return piece.reshape(len(layers), len(experts), *piece.shape[1:]) if weight.by_expert else piece


def _finite(piece: np.ndarray, path: Path, key: str) -> np.ndarray:
    """The piece itself. UserError if a number in it is NaN or infinite."""
    if piece.size and not (np.isfinite(piece.min()) and np.isfinite(piece.max())):  # both are NaN if a number is
        count = piece.size - np.count_nonzero(np.isfinite(piece))
        raise UserError(
            f"{path}: tensor {key} has {count} numbers that are not finite (NaN or infinite): the model is broken; "
            "give an earlier checkpoint, or set them (rows of unused tokens, for example to the mean of all rows)"
        )
    return piece


def _place(piece: np.ndarray, devices: list) -> list[jax.Array]:
    """A copy on each device. The copies are complete on return, so the host holds only a single piece at a time."""
    return jax.block_until_ready([jax.device_put(piece, device) for device in devices])
