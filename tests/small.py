"""A small random judge and batches for it, shared by tests."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch
from dwrl_jax.judge.judge import Judge
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder, axis_names

REPO = Path(__file__).parents[1]
VOCAB = 192  # of the models that test files and the decoder


@functools.cache
def make_judge(vocab_size=24, preset="qwen2.5-3b", sharpness=2.0, windows=(), **options):
    """A judge and random parameters; `sharpness` scales the embedding so that distributions are not flat."""
    shape = dataclasses.replace(model_config(shrink(PRESETS[preset], vocab_size)), windows=windows)
    params = hf.random_params(shape, 1)
    params["params"]["embed"]["embedding"] *= sharpness
    judge = Judge(Decoder(shape), question=(3, 4, 5), answers=(1, 2), pad=0, **{"chunk": 64} | options)
    return judge, params


def make_batch(pairs=3, length=12, vocab_size=24, seed=0, valid=None):
    rng = np.random.default_rng(seed)
    prefix_len = rng.integers(3, length + 1, (pairs, 2))
    prefix = np.where(np.arange(length) < prefix_len[..., None], rng.integers(4, vocab_size, (pairs, 2, length)), 0)
    return PreferenceBatch(
        prefix=jnp.asarray(prefix, jnp.int32),
        prefix_len=jnp.asarray(prefix_len, jnp.int32),
        answer=jnp.full((pairs, 2), 1, jnp.int32),
        valid=jnp.ones(pairs, bool) if valid is None else jnp.asarray(valid),
        pair_id=jnp.arange(100, 100 + pairs, dtype=jnp.int32),
    )


def lively(config):
    """Parameters far from initial values, so that attention, norms and biases all matter; nothing is compiled."""
    rng = np.random.default_rng(0)

    def change(path, leaf):
        noise = rng.normal(size=leaf.shape)
        values = {"embedding": noise, "scale": 1 + 0.3 * noise, "bias": 0.5 * noise}
        return jnp.asarray(values.get(path[-1].key, 0.15 * noise), leaf.dtype)

    return jax.tree_util.tree_map_with_path(change, nn.meta.unbox(axis_names(config)))


def given_thoughts(thought, thought_len):
    """A ThoughtBatch of written ids [B S G T]; their old log-probabilities are left at zero."""
    thought = jnp.asarray(thought, jnp.int32)
    return ThoughtBatch(thought, jnp.asarray(thought_len, jnp.int32), jnp.zeros(thought.shape, jnp.float32))


def assert_trees_close(found, expected, tolerance):
    """Largest difference of any leaf, relative to the largest entry of the whole tree."""
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    worst = max(
        float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )
    assert worst <= tolerance * scale, f"differs by {worst:.2e}, largest entry {scale:.2e}"


def in_process_of_devices(function, devices):
    """Run a module's function in a new process with that many CPU devices; its failure is the caller's.

    LLVM optimises nothing there, which halves the time of compiling; what XLA does to spread programs stays.
    """
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = f"from {function.__module__} import {function.__name__} as function; function()"
    done = subprocess.run([sys.executable, "-c", command], env=env, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
