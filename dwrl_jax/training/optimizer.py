"""The optimizer: AdamW with gradient clipping, a learning rate by training step, and a state for all phases or each."""

import jax
import optax

from dwrl_jax.training.settings import OptimSettings


def learning_rate(options: OptimSettings) -> optax.Schedule:
    """Learning rate by training step: a linear warm-up, then the schedule down to final_share of the peak."""
    peak, final = options.learning_rate, options.learning_rate * options.final_share
    length = max(options.steps - options.warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, length),
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, options.final_share),
    }[options.schedule]()
    if not options.warmup:
        return after
    warm = optax.linear_schedule(peak / options.warmup, peak, options.warmup - 1)
    return optax.join_schedules([warm, after], [options.warmup])


def make_optimizer(
    options: OptimSettings, phases: int, first_rate: float = 1.0
) -> optax.GradientTransformationExtraArgs:
    """Clipping, AdamW and the schedule. All `phases` updates of a training step have the same learning rate.

    `first_rate` multiplies that of the first of several updates. `update` takes the number of the phase as `phase`.
    Shared moments and a single rate do not need it.
    """
    rate = learning_rate(options)
    separate = options.moments == "separate"
    updates = 1 if separate else phases  # of a state, per training step
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity(),
        optax.adamw(
            lambda count: rate(count // updates),
            b1=options.beta1,
            b2=options.beta2,
            eps=options.epsilon,
            mu_dtype=options.moment_dtype,
            weight_decay=options.weight_decay,
            mask=decayed,
        ),
        optax.stateless(lambda updates, _: scaled_head(updates, options.value_head_rate)),
    )
    chosen = by_phase(optimizer, phases) if separate else optax.with_extra_args_support(optimizer)
    return chosen if first_rate == 1 or phases == 1 else slow_first(chosen, first_rate)


def slow_first(optimizer: optax.GradientTransformationExtraArgs, rate: float) -> optax.GradientTransformationExtraArgs:
    """The optimizer whose updates in the first phase are multiplied by `rate`."""

    def update(grads, state, params, *, phase: int):
        updates, state = optimizer.update(grads, state, params, phase=phase)
        return jax.tree.map(lambda x: x * (1.0 if phase else rate), updates), state

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def by_phase(optimizer: optax.GradientTransformation, phases: int) -> optax.GradientTransformationExtraArgs:
    """The optimizer with a state for each phase. `update` takes the number of the phase as `phase`."""

    def init(params):
        return tuple(optimizer.init(params) for _ in range(phases))

    def update(grads, states, params, *, phase: int):
        updates, state = optimizer.update(grads, states[phase], params)
        return updates, (*states[:phase], state, *states[phase + 1 :])

    return optax.GradientTransformationExtraArgs(init, update)


def scaled_head(updates, rate: float):
    """The updates; that of a value head is multiplied by `rate`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x * rate if path[-1].key == "value_head" else x, updates)


def decayed(params):
    """Which parameters decay: matrices (kernels, embedding, head) do, norm scales and biases do not."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)
