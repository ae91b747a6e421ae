"""Parameters from a Hugging Face folder, or new random parameters."""

from pathlib import Path

import flax.linen as nn
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import family_of, read_config
from dwrl_jax.models.hf.table import EMBEDDING, LM_HEAD, Weight, hf_tensors, weight_table
from dwrl_jax.models.hf.tensor_files import FLOATS, Stored, find_tensors
from dwrl_jax.models.transformer import Decoder, ModelConfig

DOWNLOADED = ["*.safetensors", "*.json", "*.jinja", "tokenizer*", "merges.txt"]


def resolve(path_or_hub_id: str) -> Path:
    """The local folder of a model. A path that is not a folder is a hub id and is downloaded from the Hugging Face hub.

    UserError if the download fails.
    """
    path = Path(path_or_hub_id).expanduser()
    if path.is_dir():
        return path
    try:
        return Path(huggingface_hub.snapshot_download(str(path_or_hub_id), allow_patterns=DOWNLOADED))
    except Exception as error:  # network, permission, cache and name errors have no common base class
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"{path_or_hub_id}: no such folder, and not to be had from the Hugging Face hub ({reason}); "
            "give a folder with config.json and *.safetensors, or check the id, the network and the login"
        ) from error


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


def load_params(folder, config: ModelConfig, *, shardings=None) -> dict:
    """{"params": ...} from config.json and the safetensors files of a folder, in `config.param_dtype`.

    `shardings` is a tree like the result and gives the sharding of each leaf; None puts everything on the default
    device. A process reads only the parts that its devices hold. It reads a single part of a parameter at a time, and
    once for all devices that hold the same part. The host needs memory for such a part beyond the result. Processes
    send each other nothing. For a part with few columns of a matrix, the disk still reads the pages around them.
    UserError names a tensor that is missing, unknown, of another shape or of a quantised type, or a file that cannot
    be read.
    """
    places = {} if shardings is None else flatten_dict(shardings["params"])
    tensors, name = find_tensors(Path(folder)), family_of(read_config(folder)).tensor_name
    _check_tensors(Path(folder), tensors, config, name)
    params = {w.path: _load_weight(tensors, w, config, places.get(w.path)) for w in weight_table(config, name)}
    return {"params": unflatten_dict(params)}


def _check_tensors(folder: Path, tensors: dict[str, Stored], config: ModelConfig, tensor_name) -> None:
    """UserError if a tensor is missing or unexpected, or has a wrong shape or a type that is not float."""
    embedding_key, head_key = tensor_name(EMBEDDING), tensor_name(LM_HEAD)
    expected = {key: weight.hf_shape for key, weight, _ in hf_tensors(config, tensor_name)}
    missing = sorted(expected.keys() - tensors.keys())
    if missing:
        raise UserError(f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}")
    expected.setdefault(head_key, expected[embedding_key])
    for key, tensor in sorted(tensors.items()):
        if key.endswith("rotary_emb.inv_freq"):  # a constant in old exports
            continue
        where = f"{tensor.path}: tensor {key}"
        if key not in expected:
            raise UserError(f"{tensor.path}: unexpected tensor {key}")
        if tensor.shape != expected[key]:
            raise UserError(f"{where} has shape {tensor.shape}, config.json makes it {expected[key]}")
        if tensor.dtype not in FLOATS:
            raise UserError(f"{where} has type {tensor.dtype}, only F32, BF16 and F16 are read")
    if config.tied and head_key in tensors:
        head, embedding = tensors[head_key], tensors[embedding_key]
        if not all(map(np.array_equal, head.view(), embedding.view())):  # row by row: holds two rows at a time
            raise UserError(f"{head.path}: {head_key} differs from {embedding_key}, but config.json ties the two")


def _load_weight(tensors: dict[str, Stored], weight: Weight, config: ModelConfig, sharding) -> jax.Array:
    shape = (config.layers,) * weight.stacked + weight.our_shape
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


def _read_piece(tensors: dict[str, Stored], weight: Weight, config: ModelConfig, index: tuple) -> np.ndarray:
    """`parameter[index]`. Its memory keeps the order of axes in the file, because JAX transposes faster than NumPy."""
    if not weight.stacked:
        return np.array(weight.from_hf(tensors[weight.key].view())[index], config.param_dtype)
    layers, rest = range(config.layers)[index[0]], index[1:]
    views = [weight.from_hf(tensors[weight.key.format(layer=layer)].view())[rest] for layer in layers]
    return np.stack(views, dtype=config.param_dtype, casting="unsafe")


def _place(piece: np.ndarray, devices: list) -> list[jax.Array]:
    """A copy on each device. The copies are complete on return, so the host holds only a single piece at a time."""
    return jax.block_until_ready([jax.device_put(piece, device) for device in devices])
