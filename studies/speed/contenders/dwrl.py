"""Parts that the contenders of this project share: a checkpoint as a judge, the common tokens as batches, an update."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(Path(__file__).parents[3]))

from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import Judge, logps
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config, read_config
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives.parts.policy import clipped_surrogate

DTYPES = {"f32": "float32", "bf16": "bfloat16"}


class FullJudge(Judge):
    """A judge whose thoughts all have full length, as this work needs: no model can draw its end token."""

    @property
    def end(self) -> int:
        return -1


def load(a):
    """The judge and its parameters."""
    dtype = DTYPES[a.dtype]
    config = model_config(read_config(a.ckpt), dtype=dtype, param_dtype=dtype, remat="dots")
    judge = FullJudge(Decoder(config), question=(a.vocab - 1,), answers=(0, 1), pad=0)
    return judge, hf.load_params(a.ckpt, config)


def batch_of(prompts):
    """Prompts [P L] as a batch of P / 2 pairs: the prompts are its responses."""
    rows, length = prompts.shape
    return PreferenceBatch(
        prefix=jnp.asarray(prompts).reshape(rows // 2, 2, length),
        prefix_len=jnp.full((rows // 2, 2), length),
        answer=jnp.zeros((rows // 2, 2), jnp.int32),
        valid=jnp.ones(rows // 2, bool),
        pair_id=jnp.arange(rows // 2),
    )


def thoughts_of(a, completions):
    """Completions [P * G T] as thoughts that are all full."""
    shape = (a.prompts // 2, 2, a.group, a.new)
    thought = jnp.asarray(np.asarray(completions).reshape(shape))
    return ThoughtBatch(thought, jnp.full(shape[:-1], a.new), jnp.zeros(shape, jnp.float32))


def make_sampler(a, judge):
    options = SamplerOptions(group_size=a.group, max_thought=a.new)
    return jax.jit(lambda params, batch, key: sample(judge, options, params, batch, key)[0])


def make_update(judge, params):
    """A jitted (params, opt_state, batch, thoughts, advantages [P * G]) -> (params, opt_state), and the first state.

    The loss is the clipped surrogate, a mean over tokens, at ratio one; AdamW with gradients clipped at norm 1.
    """
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0))

    def loss(params, batch, thoughts, advantage):
        logp = logps(judge, params, batch, thoughts).thought
        ratio = jnp.exp(logp - jax.lax.stop_gradient(logp))
        weight = advantage.reshape(logp.shape[:-1])[..., None]
        return -clipped_surrogate(ratio, weight, (0.2, 0.2), 3.0).mean()

    def update(params, opt_state, batch, thoughts, advantage):
        grads = jax.grad(loss)(params, batch, thoughts, advantage)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(update, donate_argnums=(0, 1)), optimizer.init(params)
