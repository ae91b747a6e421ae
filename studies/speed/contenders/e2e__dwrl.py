# python: venv
"""A whole step: sample, score trivially, update."""

import common
import dwrl
import jax
import jax.numpy as jnp
import numpy as np
from transformers import AutoTokenizer


def main():
    a = common.arguments("e2e", "dwrl")
    judge, params = dwrl.load(a)
    tokenizer = AutoTokenizer.from_pretrained(a.ckpt)
    sampler, batch, key = dwrl.make_sampler(a, judge), dwrl.batch_of(common.prompts(a)), jax.random.key(a.seed)
    update, opt_state = dwrl.make_update(judge, params)

    def step():
        nonlocal params, opt_state, key
        key, now = jax.random.split(key)
        thoughts = jax.block_until_ready(sampler(params, batch, now))
        texts = tokenizer.batch_decode(np.asarray(thoughts.thought).reshape(a.seqs, a.new))
        rewards = np.array([common.reward_of_text(text) for text in texts]).reshape(a.prompts, a.group)
        advantages = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-6)
        advantages = jnp.asarray(advantages.reshape(-1), jnp.float32)
        params, opt_state = jax.block_until_ready(update(params, opt_state, batch, thoughts, advantages))

    common.emit(a, common.run_steps(a, step))


if __name__ == "__main__":
    main()
