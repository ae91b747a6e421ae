"""The place of a model's parameters on a mesh: their shapes, dtypes and shardings."""

import math

import flax.linen as nn
import jax

from dwrl_jax.core import sharding
from dwrl_jax.models import lora
from dwrl_jax.models.settings import LoraSettings
from dwrl_jax.models.transformer import ModelConfig, axis_names


def widest_mesh(config: ModelConfig) -> jax.sharding.Mesh:
    """A mesh of all devices that splits the weights over as many devices as the model's width allows."""
    sizes = {"data": -1, "fsdp": math.gcd(jax.device_count(), config.hidden_size, config.experts), "tensor": 1}
    return sharding.make_mesh(sizes)


def abstract_params(config: ModelConfig, mesh: jax.sharding.Mesh | None = None):
    """Shapes, dtypes and shardings of the parameters, on `mesh` or else on the widest mesh."""
    return _abstract(axis_names(config), mesh or widest_mesh(config))


def abstract_trained(config: ModelConfig, settings: LoraSettings, mesh: jax.sharding.Mesh | None = None):
    """The same of what a run with adapters trains."""
    return _abstract(lora.trained_axes(config, settings), mesh or widest_mesh(config))


def _abstract(boxed, mesh: jax.sharding.Mesh):
    places = sharding.shardings(mesh, boxed)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), nn.meta.unbox(boxed), places
    )
