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
from dwrl_jax.models import lora
from dwrl_jax.models.places import abstract_params
from dwrl_jax.models.settings import LoraSettings
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
    lora: LoraSettings | None = dataclasses.field(default=None, kw_only=True)  # None: all weights are trained

    @property
    def pairwise(self) -> bool:
        """Whether the sides are the two orders of both responses, so that a score is that of the right label."""
        return self.judge.kind == "label"

    @property
    def keeps_start(self) -> bool:
        """Whether the starting model stays in memory beside the state."""
        return self.needs_reference or self.thoughts.source == "start" or self.lora is not None


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of a run. Each is compiled for each shape of its arguments; nothing else is compiled.

    Batches come from the host and thoughts go back to it: they lie whole on every device, and the work on them is
    spread over the mesh. Parameters and optimizer lie where those of the starting model do. With adapters, `params` are
    what is trained alone, and the starting model has the frozen weights.
    """

    begin: Callable  # the starting model -> TrainState; its parameters are donated, but not with adapters
    sample: Callable  # (params, start, batch, stream, step) -> thoughts, log scores, their weights
    sample_votes: Callable  # the same with as many thoughts as there are votes
    reference_logps: Callable  # (start, batch, thoughts, packing) -> Logps under the starting model
    train_step: Callable  # (state, batch, thoughts, packing, start) -> (state, metrics); start with adapters alone


def abstract_state(run: Recipe) -> TrainState:
    """Shapes, types and places of the training state; nothing is computed."""
    shape = run.judge.model.config
    boxed = lora.trained_axes(shape, run.lora) if run.lora else axis_names(shape)
    shapes = jax.eval_shape(functools.partial(_begin, run.optimizer), nn.meta.unbox(boxed))
    places = sharding.like_parameters(run.mesh, shapes, boxed)
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)


def abstract_start(run: Recipe):
    """Shapes, types and places of the starting model's parameters."""
    start = abstract_params(run.judge.model.config, run.mesh)
    head = start["params"].get("value_head")
    if run.lora and head:
        start["params"]["value_head"] = jax.ShapeDtypeStruct(head.shape, jnp.float32, sharding=head.sharding)
    return start


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
            models = (lora.variables(run.lora, start, each) for each in (params, start))
            thoughts, log_scores = think(run.judge, plan, *models, batch, key)
            return thoughts, log_scores, weigh(log_scores, run.pairwise)

        return jax.jit(sample_and_weigh, out_shardings=whole)

    def reference_logps(start, *thoughts):
        return logps(run.judge, lora.variables(run.lora, start, start), *thoughts)

    group_size, votes = run.thoughts.sampler.group_size, max(run.votes)
    sample = sampler(group_size)
    return Programs(
        begin=_beginning(run, state),
        sample=sample,
        sample_votes=sample if votes == group_size else sampler(votes),
        reference_logps=jax.jit(reference_logps, out_shardings=whole),
        train_step=make_train_step(
            run.judge, run.optimizer, run.phases, run.micro_batches, (state, whole), run.lora, run.seed
        ),
    )


def _beginning(run: Recipe, places):
    if run.lora is None:
        return jax.jit(functools.partial(_begin, run.optimizer), donate_argnums=0, out_shardings=places)

    def begin(start):
        return _begin(run.optimizer, lora.begun(start, run.judge.model.config, run.lora, run.seed))

    return jax.jit(begin, out_shardings=places)
