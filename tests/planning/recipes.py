"""Programs of a small judge, for tests of what is counted and compiled."""

import jax
import numpy as np
import optax

from dwrl_jax.core import sharding
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import Judge
from dwrl_jax.judge.thoughts import ThoughtPlan
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives import dwrl
from dwrl_jax.training.programs import Recipe


def make_recipe(mesh=(1, 1, 1), vocab_size=512, chunk=64, micro_batches=2, max_thought=16, question=(3, 4, 5), **shape):
    """Programs of a small Qwen judge on a mesh of this process's devices."""
    hf_config = shrink(PRESETS["qwen2.5-3b"], vocab_size, **shape)
    judge = Judge(Decoder(model_config(hf_config, attention="xla")), question, (1, 2), 0, chunk=chunk)
    devices = jax.devices()[: np.prod(mesh)]
    phases = dwrl.phases(dwrl.Hyper())
    return Recipe(
        seed=0,
        judge=judge,
        mesh=sharding.make_mesh(dict(zip(sharding.AXES, mesh)), devices),
        thoughts=ThoughtPlan("policy", SamplerOptions(group_size=2, max_thought=max_thought)),
        votes=(1, 2),
        phases=phases,
        optimizer=optax.adamw(1e-3),
        micro_batches=micro_batches,
        needs_reference=False,
        margins=False,
    )
