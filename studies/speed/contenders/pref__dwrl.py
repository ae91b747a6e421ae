# python: venv
"""One Bradley-Terry update of a value head on pairs of full-length sequences: nothing is shared in this work."""

import common
import dwrl
import jax
import jax.numpy as jnp
import optax


def main():
    a = common.arguments("pref", "dwrl")
    judge, params = dwrl.load(a)
    chosen, rejected = (jnp.asarray(ids).reshape(-1, a.micro // 2, 1, a.total) for ids in common.pairs(a))
    micro = jnp.concatenate([chosen, rejected], 1)  # [micro-batches, chosen then rejected, 1, tokens]
    params = {"model": params, "head": jnp.zeros(a.config["hidden_size"])}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6, weight_decay=0.0))
    opt_state = optimizer.init(params)
    positions = jnp.broadcast_to(jnp.arange(a.total), micro.shape[1:])

    def loss(params, tokens):
        hidden, _ = judge.model.apply(params["model"], tokens, positions)
        reward = hidden[:, 0, -1].astype(jnp.float32) @ params["head"]
        better, worse = jnp.split(reward, 2)
        return -jax.nn.log_sigmoid(better - worse).mean() / len(micro)

    def update(params, opt_state):
        def add(grads, tokens):
            return jax.tree.map(jnp.add, grads, jax.grad(loss)(params, tokens)), None

        grads, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), micro)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    update = jax.jit(update, donate_argnums=(0, 1))

    def step():
        nonlocal params, opt_state
        params, opt_state = jax.block_until_ready(update(params, opt_state))

    common.emit(a, common.run_steps(a, step))


if __name__ == "__main__":
    main()
