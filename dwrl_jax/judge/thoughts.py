"""Make thoughts: for a step of training, for an evaluation and for a plan."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dwrl_jax.core.types import Logps, PreferenceBatch, ThoughtBatch, Verdicts
from dwrl_jax.generation.draw import draw
from dwrl_jax.generation.keys import pair_keys
from dwrl_jax.generation.sampler import Cache, Sample, SamplerOptions, follow, write
from dwrl_jax.judge.judge import Judge, answer_logps, logps
from dwrl_jax.models.transformer import logits, output_table


@dataclasses.dataclass(frozen=True)
class ThoughtPlan:
    """The way in which a run makes its thoughts. The fields correspond to those of `objectives.Objective`."""

    source: str  # "policy", "start", "none" or "written"
    sampler: SamplerOptions
    verdicts: bool = False
    empty_thought: bool = False

    @property
    def samples(self) -> bool:
        """Whether each step draws thoughts."""
        return self.source in ("policy", "start")


def no_thoughts(batch: PreferenceBatch, end: int) -> ThoughtBatch:
    """A single thought for each response, which is only the end token. It was not drawn."""
    shape = (*batch.answer.shape, 1)
    thought = np.full((*shape, 1), end, np.int32)
    return ThoughtBatch(thought, np.ones(shape, np.int32), np.zeros(thought.shape, np.float32))


def with_empty_thought(thoughts: ThoughtBatch, end: int) -> ThoughtBatch:
    """The same groups, each with one more thought at its end, which is only the end token. It was not drawn."""

    def behind(array, value):
        return jnp.pad(array, [(0, axis == 2) for axis in range(array.ndim)], constant_values=value)

    return ThoughtBatch(behind(thoughts.thought, end), behind(thoughts.thought_len, 1), behind(thoughts.old_logp, 0))


def with_reference(thoughts: ThoughtBatch, reference: Logps) -> ThoughtBatch:
    """The thoughts with their log-probabilities under the starting model."""
    verdict = thoughts.verdict and thoughts.verdict.replace(ref_logp=reference.verdict)
    return thoughts.replace(ref_logp=reference.thought, verdict=verdict)


def for_update(
    plan: ThoughtPlan, end: int, batch: PreferenceBatch, written: ThoughtBatch | None, sample: Callable
) -> tuple[ThoughtBatch, tuple | None]:
    """The thoughts that an update learns from, and the result of `sample()`: (thoughts, log scores, weights), or None.

    `written` are the thoughts in the data, if the plan uses them.
    """
    thoughts, sampled = written, None
    if plan.source == "none":
        thoughts = no_thoughts(batch, end)
    elif plan.samples:
        sampled = sample()
        thoughts = sampled[0]
    return with_empty_thought(thoughts, end) if plan.empty_thought else thoughts, sampled


def think(
    judge: Judge, plan: ThoughtPlan, params, start, batch: PreferenceBatch, key
) -> tuple[ThoughtBatch, Float[Array, "B S G"]]:
    """Thoughts from the plan's source (policy, starting model or none), and their log scores under the policy."""
    if plan.source == "none":
        thoughts = no_thoughts(batch, judge.end)
    elif plan.source == "start":
        thoughts, _ = sample_in_parts(judge, plan.sampler, start, batch, key, plan.verdicts)
    else:
        return sample_in_parts(judge, plan.sampler, params, batch, key, plan.verdicts)
    return thoughts, logps(judge, params, batch, thoughts).answer


def sample_in_parts(
    judge: Judge, options: SamplerOptions, params, batch: PreferenceBatch, key, verdicts: bool = False
) -> tuple[ThoughtBatch, Float[Array, "B S G"]]:
    """Thoughts and their log scores, for `options.batch_size` pairs at a time.

    The parts do not change the thoughts, because keys come from pair ids.
    """

    def sample_part(part):
        return sample(judge, options, params, part, key, verdicts)[:2]

    pairs = len(batch.pair_id)
    size = options.batch_size or pairs
    if size >= pairs:
        return sample_part(batch)
    parts = jax.lax.map(sample_part, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), batch))
    return jax.tree.map(lambda x: x.reshape(pairs, *x.shape[2:]), parts)


def sample(
    judge: Judge, options: SamplerOptions, params, batch: PreferenceBatch, key, verdicts: bool = False
) -> tuple[ThoughtBatch, Float[Array, "B S G"], Float[Array, "B S G"]]:
    """Thoughts drawn by the model `params`, their log scores and the total probability of the answer tokens.

    `key` is that of `keys.sampling_key`. With `verdicts` an answer is drawn after each thought. Each prefix is computed
    only once.
    """
    B, S, L = batch.prefix.shape
    keys = pair_keys(key, batch.pair_id, S, options.group_size)
    rows = batch.prefix.reshape(B * S, L), batch.prefix_len.reshape(-1)
    drawn, cache = write(judge.writer, options, params, *rows, keys)
    asked = follow(cache, judge.question)
    answer = jnp.broadcast_to(batch.answer.reshape(-1, 1), keys.shape)
    score, mass, _ = answer_logps(judge, cache.params, asked, answer)
    shape = (B, S, options.group_size)
    thoughts = ThoughtBatch(
        thought=drawn.thought.reshape(*shape, -1),
        thought_len=drawn.length.reshape(shape),
        old_logp=drawn.logp.reshape(*shape, -1),
        verdict=_verdicts(judge, cache, asked, keys, drawn, shape) if verdicts else None,
    )
    return thoughts, score.reshape(shape), mass.reshape(shape)


def _verdicts(
    judge: Judge, cache: Cache, asked: Float[Array, "P G D"], keys: Array, drawn: Sample, shape: tuple[int, int, int]
) -> Verdicts:
    """An answer for each thought, drawn from the whole vocabulary. Its position is that after the longest thought."""
    scaled = logits(asked, output_table(cache.params), judge.model.config.logit_cap)
    token, logp = (x.reshape(shape) for x in draw(keys, drawn.thought.shape[-1], scaled, scaled))
    matches = token[..., None] == jnp.asarray(judge.answers)
    known: Bool[Array, "B S G"] = matches.any(-1)
    place = jnp.where(known, matches.argmax(-1), -1)
    right = place == jnp.arange(2)[:, None] if judge.kind != "score" else jnp.zeros(shape, bool)
    return Verdicts(token, logp, right=right, well_formed=drawn.ended.reshape(shape) & known, place=place)
