"""The jitted programs of a run, and the recipe that they follow from."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dwrl_jax.core import sharding
from dwrl_jax.core.types import TrainState
from dwrl_jax.generation.keys import sampling_key
from dwrl_jax.judge.judge import Judge, logps
from dwrl_jax.judge.thoughts import ThoughtPlan, think
from dwrl_jax.judge.weights import weigh
from dwrl_jax.models.transformer import axis_names
from dwrl_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that the programs of a run follow from. Data, weights and tokenizer are not among it."""

    seed: int
    judge: Judge
    mesh: jax.sharding.Mesh
    thoughts: ThoughtPlan
    votes: tuple[int, ...]
    phases: dict[str, Callable]
    optimizer: optax.GradientTransformationExtraArgs
    micro_batches: int
    needs_reference: bool  # the objective has a KL term to the starting model
    margins: bool  # the objective learns from the margins of the pairs

    @property
    def pairwise(self) -> bool:
        """Whether the sides are the two orders of both responses, so that a score is that of the right label."""
        return self.judge.kind == "label"

    @property
    def keeps_start(self) -> bool:
        """Whether the starting model stays in memory beside the state."""
        return self.needs_reference or self.thoughts.source == "start"


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of a run. Each is compiled for each shape of its arguments; nothing else is compiled.

    Batches come from the host and thoughts go back to it: they lie whole on every device, and the work on them is
    spread over the mesh. Parameters and optimizer lie where those of the starting model do.
    """

    begin: Callable  # params -> TrainState; the parameters are donated
    sample: Callable  # (params, start, batch, stream, step) -> thoughts, log scores, their weights
    sample_votes: Callable  # the same with as many thoughts as there are votes
    reference_logps: Callable  # (start, batch, thoughts, packing) -> Logps under the starting model
    train_step: Callable


def abstract_state(run: Recipe) -> TrainState:
    """Shapes, types and places of the training state; nothing is computed."""
    boxed = axis_names(run.judge.model.config)
    shapes = jax.eval_shape(functools.partial(_begin, run.optimizer), nn.meta.unbox(boxed))
    places = sharding.like_parameters(run.mesh, shapes, boxed)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def _begin(optimizer: optax.GradientTransformation, params) -> TrainState:
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def make_programs(run: Recipe) -> Programs:
    whole = sharding.whole(run.mesh)
    state = jax.tree.map(lambda x: x.sharding, abstract_state(run))

    def sampler(group_size):
        options = dataclasses.replace(run.thoughts.sampler, group_size=group_size)
        plan = dataclasses.replace(run.thoughts, sampler=options)

        def sample_and_weigh(params, start, batch, stream, step):
            key = sampling_key(run.seed, stream, 0 if plan.source == "start" else step)
            thoughts, log_scores = think(run.judge, plan, params, start, batch, key)
            return thoughts, log_scores, weigh(log_scores, run.pairwise)

        return jax.jit(sample_and_weigh, out_shardings=whole)

    group_size, votes = run.thoughts.sampler.group_size, max(run.votes)
    sample = sampler(group_size)
    return Programs(
        begin=jax.jit(functools.partial(_begin, run.optimizer), donate_argnums=0, out_shardings=state),
        sample=sample,
        sample_votes=sample if votes == group_size else sampler(votes),
        reference_logps=jax.jit(functools.partial(logps, run.judge), out_shardings=whole),
        train_step=make_train_step(run.judge, run.optimizer, run.phases, run.micro_batches, (state, whole)),
    )
