"""The jitted programs of a run and what they are made of."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from dwrl_jax.core import sharding
from dwrl_jax.core.types import Logps, PreferenceBatch, ThoughtBatch, TrainState
from dwrl_jax.generation.forced import Judge, logps, no_thoughts
from dwrl_jax.generation.sampler import SamplerOptions, sample
from dwrl_jax.models.transformer import axis_names
from dwrl_jax.training.step import make_train_step
from dwrl_jax.workdir import records

TRAINING, HELD_OUT = 0, 1  # streams of sampling keys


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What the programs of a run are made of: no data, weights or tokenizer."""

    seed: int
    judge: Judge
    mesh: jax.sharding.Mesh
    sampler: SamplerOptions
    thoughts: str  # where they come from: the objective's THOUGHTS
    pairwise: bool  # the sides are the two orders of both responses, and a score is the right label's
    votes: tuple[int, ...]
    phases: dict[str, Callable]
    optimizer: optax.GradientTransformationExtraArgs
    micro_batches: int
    needs_reference: bool  # the objective has a KL term to the starting model
    empty_thought: bool  # an update sees the empty thought behind those that were drawn
    margins: bool  # the objective learns from the margins of the pairs

    @property
    def samples(self) -> bool:
        """Whether each step draws thoughts."""
        return self.thoughts in ("policy", "start")

    @property
    def keeps_start(self) -> bool:
        """Whether the starting model stays beside the state."""
        return self.needs_reference or self.thoughts == "start"


def sampling_key(seed: int, stream: int, step: int):
    """Keys for (seed, step); pair, side, sample and position are folded in by the sampler."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted programs of a run, one for each shape of their arguments; nothing else is compiled.

    Batches come from the host and thoughts go back to it: they lie whole on every device, and what a program
    does with them is spread over the mesh. Parameters and optimizer lie as the starting model's do.
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
        options = dataclasses.replace(run.sampler, group_size=group_size)

        def sample_and_weigh(params, start, batch, stream, step):
            key = sampling_key(run.seed, stream, 0 if run.thoughts == "start" else step)
            thoughts, log_scores = _think(run, options, params, start, batch, key)
            return thoughts, log_scores, records.weigh(log_scores, run.pairwise)

        return jax.jit(sample_and_weigh, out_shardings=whole)

    own, votes = run.sampler.group_size, max(run.votes)
    sample_own = sampler(own)
    return Programs(
        begin=jax.jit(functools.partial(_begin, run.optimizer), donate_argnums=0, out_shardings=state),
        sample=sample_own,
        sample_votes=sample_own if votes == own else sampler(votes),
        reference_logps=jax.jit(functools.partial(logps, run.judge), out_shardings=whole),
        train_step=make_train_step(run.judge, run.optimizer, run.phases, run.micro_batches, (state, whole)),
    )


def _think(run: Recipe, options: SamplerOptions, params, start, batch: PreferenceBatch, key):
    """Thoughts, of the policy, of the starting model or none at all, and their log scores under the policy."""
    if run.thoughts == "none":
        thoughts = no_thoughts(batch, run.judge.end)
    elif run.thoughts == "start":
        thoughts, _ = sample_in_parts(run.judge, options, start, batch, key)
    else:
        thoughts, log_scores = sample_in_parts(run.judge, options, params, batch, key)
        return thoughts, log_scores
    return thoughts, logps(run.judge, params, batch, thoughts).answer


def sample_in_parts(judge: Judge, options: SamplerOptions, params, batch: PreferenceBatch, key):
    """Thoughts and their log scores, `options.batch_size` pairs at a time: keys come from pair ids, not from parts."""

    def one(part):
        return sample(judge, options, params, part, key)[:2]

    pairs = len(batch.pair_id)
    size = options.batch_size or pairs
    if size >= pairs:
        return one(batch)
    found = jax.lax.map(one, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batch))
    return jax.tree.map(lambda x: x.reshape(pairs, *x.shape[2:]), found)


def with_reference(thoughts: ThoughtBatch, found: Logps) -> ThoughtBatch:
    """The thoughts with their log-probabilities under the starting model."""
    verdict = thoughts.verdict and thoughts.verdict.replace(ref_logp=found.verdict)
    return thoughts.replace(ref_logp=found.thought, verdict=verdict)
