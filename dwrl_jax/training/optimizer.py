"""The optimizer: AdamW with gradient clipping, a learning rate by training step, and one state or one per phase."""

import dataclasses

import jax
import optax


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """AdamW. `learning_rate` warms up linearly over `warmup` steps, then follows `schedule` to the end."""

    learning_rate: float
    warmup: int
    schedule: str  # "constant", "linear" or "cosine", the last two down to final_share * learning_rate
    final_share: float
    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    clip_norm: float
    value_head_rate: float = 1.0  # of a value head, in learning rates
    moment_dtype: str = "float32"  # of the first moment; optax keeps the second in the parameters' own
    moments: str = "shared"  # by the phases of a step, or "separate": each phase has its own


def learning_rate(options: OptimizerOptions, steps: int) -> optax.Schedule:
    """Learning rate by training step."""
    peak, final = options.learning_rate, options.learning_rate * options.final_share
    length = max(steps - options.warmup, 1)
    after = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, final, length),
        "cosine": lambda: optax.cosine_decay_schedule(peak, length, options.final_share),
    }[options.schedule]()
    if not options.warmup:
        return after
    warm = optax.linear_schedule(peak / options.warmup, peak, options.warmup - 1)
    return optax.join_schedules([warm, after], [options.warmup])


def make_optimizer(options: OptimizerOptions, steps: int, phases: int) -> optax.GradientTransformationExtraArgs:
    """Clipping, AdamW and the schedule; the `phases` updates of a training step have the same learning rate.

    `update` takes the number of the phase as `phase`. With shared moments it may be left out.
    """
    rate = learning_rate(options, steps)
    separate = options.moments == "separate"
    updates = 1 if separate else phases  # of one state in a training step
    optimizer = optax.chain(
        optax.clip_by_global_norm(options.clip_norm),
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
    return by_phase(optimizer, phases) if separate else optax.with_extra_args_support(optimizer)


def by_phase(optimizer: optax.GradientTransformation, phases: int) -> optax.GradientTransformationExtraArgs:
    """The same optimizer with a state for each phase; `update` takes the number of the phase as `phase`."""

    def init(params):
        return tuple(optimizer.init(params) for _ in range(phases))

    def update(grads, states, params, *, phase: int):
        updates, state = optimizer.update(grads, states[phase], params)
        return updates, (*states[:phase], state, *states[phase + 1 :])

    return optax.GradientTransformationExtraArgs(init, update)


def scaled_head(updates, rate: float):
    """The updates with that of the value head, where there is one, times `rate`."""
    return jax.tree_util.tree_map_with_path(lambda path, x: x * rate if path[-1].key == "value_head" else x, updates)


def decayed(params):
    """Weight decay applies to matrices: kernels, embedding and head, not to norm scales and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in ("scale", "bias"), params)
