"""On an NVIDIA GPU: cuDNN's attention against all scores at once, and one density in sampling and training.

Elsewhere these tests are skipped; tests/models/test_kernels.py makes the same calls without cuDNN.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax.generation.packing import Packing, pack
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.generation.writer import content_length
from dwrl_jax.judge.judge import Judge, branch_length, logps
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import hf
from dwrl_jax.models.attention import Region, kernels
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, shrink
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives.dwrl import Hyper, phases
from dwrl_jax.training.step import gradient
from tests.models.test_attention import all_scores, value_and_gradient
from tests.models.test_kernels import LONG, OWN, SEGMENTS, SHARED, inputs
from tests.small import assert_trees_close, make_batch

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")

CASES = {
    "causal": {"H": 64},
    "head size 128": {"H": 128, "N": 4, "K": 1},
    "shared": {"regions": (SHARED,), "H": 64},
    "own and shared": {"regions": (OWN, SHARED, (1, 3), (3, 2)), "H": 64},
    "segments": {"segments": SEGMENTS, "H": 64},
    "segments behind shared": {"regions": (SHARED, (1, 3)), "segments": SEGMENTS, "H": 64},
    "window": {"regions": (SHARED, OWN), "window": 7, "H": 64},
    "window in segments": {"regions": (SHARED,), "segments": SEGMENTS, "window": 3, "H": 64},
    "several blocks": {"regions": (LONG,), "T": 190, "N": 4, "K": 2, "H": 64},
}


def narrowed(tree):
    return jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)


@pytest.mark.parametrize("case", CASES)
def test_cudnn_equals_all_scores(case):
    """In bfloat16, as near to the float32 result as all scores at once in bfloat16 are; gradients too."""
    options = dict(CASES[case])
    q, k, v, regions, segments, *window = inputs(*options.pop("regions", ()), **options)
    narrow = [narrowed(x) for x in (q, k, v)], tuple(Region(*narrowed(r[:2]), r.length) for r in regions)
    found = value_and_gradient(kernels.cudnn, *narrow[0], narrow[1], segments, *window)
    with jax.default_matmul_precision("highest"):
        expected = value_and_gradient(all_scores, q, k, v, regions, segments, *window)
    for a, b in zip(found, expected):
        assert_trees_close(jax.tree.map(lambda x: x.astype(jnp.float32), a), b, 2e-2)


@functools.cache
def judge_of(dtype: str, attention: str) -> Judge:
    """A small Qwen2.5 whose heads have 64 dimensions, as cuDNN needs them."""
    small = shrink(PRESETS["qwen2.5-3b"], 24, hidden_size=256)
    config = model_config(small, dtype=dtype, attention=attention)
    return Judge(Decoder(config), question=(3, 4, 5), answers=(1, 2), pad=0, chunk=64)


def drawn(judge: Judge, params):
    batch = make_batch(pairs=4, length=96)
    options = SamplerOptions(group_size=8, max_thought=80)
    thoughts, scores, _ = jax.jit(functools.partial(sample, judge, options))(params, batch, jax.random.key(0))
    return batch, thoughts, scores


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 5e-2)])
def test_sampled_density_is_the_trained_one(dtype, tolerance):
    judge = judge_of(dtype, "auto")
    params = hf.random_params(judge.model.config, 1)
    params["params"]["embed"]["embedding"] *= 2
    with jax.default_matmul_precision("highest"):
        batch, thoughts, scores = drawn(judge, params)
        forced = jax.jit(functools.partial(logps, judge))(params, batch, thoughts)
    assert float(jnp.abs(forced.thought - thoughts.old_logp).max()) < tolerance
    assert float(jnp.abs(forced.answer - scores).max()) < tolerance


def packed_lanes(judge: Judge, thoughts) -> Packing:
    content = content_length(judge.writer, thoughts.thought, thoughts.thought_len)
    size = branch_length(judge, thoughts.thought.shape[-1])
    packing = pack(np.asarray(1 + content + len(judge.question)), size)
    assert packing is not None
    return packing


@pytest.mark.parametrize("packed", [False, True])
def test_gradient_by_cudnn(packed):
    """DWRL's two gradients point where those of float32 and all scores at once do."""
    exact, fused = judge_of("float32", "xla"), judge_of("bfloat16", "cudnn")
    params = hf.random_params(exact.model.config, 1)
    batch, thoughts, _ = drawn(exact, params)
    thoughts = thoughts.replace(thought_len=jnp.minimum(thoughts.thought_len, 18))  # so short that they can be packed
    packing = packed_lanes(exact, thoughts) if packed else None
    for loss in phases(Hyper()).values():
        with jax.default_matmul_precision("highest"):
            right = jax.jit(lambda p, loss=loss: gradient(exact, loss, p, batch, thoughts)[0])(params)
        given = jax.jit(lambda p, loss=loss: gradient(fused, loss, p, batch, thoughts, packing=packing)[0])(params)
        a, b = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(t)]) for t in (right, given))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert cosine > 0.99
        assert abs(np.linalg.norm(b) / np.linalg.norm(a) - 1) < 0.05
