# python: venv
"""One policy-gradient update on given completions; a prompt is computed and differentiated once for its group."""

import common
import dwrl
import jax
import jax.numpy as jnp


def main():
    a = common.arguments("train", "dwrl")
    judge, params = dwrl.load(a)
    update, opt_state = dwrl.make_update(judge, params)
    batch, thoughts = dwrl.batch_of(common.prompts(a)), dwrl.thoughts_of(a, common.completions(a))
    advantages = jnp.asarray(common.advantages(a))

    def step():
        nonlocal params, opt_state
        params, opt_state = jax.block_until_ready(update(params, opt_state, batch, thoughts, advantages))

    common.emit(a, common.run_steps(a, step))


if __name__ == "__main__":
    main()
