"""The least time of a step and its memory, counted from shapes alone, before anything is compiled.

The time is a roofline of FLOPs and bytes (counts.py), as that of a compiled plan. Two parts of it are estimates here:
bytes sent, which a compiled plan reads from the program, and memory besides weights, keys and values. They say which
choices are worth compiling. Letters as in counts.py; f is the size of the mesh axis "fsdp", t that of "tensor".
"""

import dataclasses

import jax.numpy as jnp

from dwrl_jax.core import sharding
from dwrl_jax.models.transformer import ModelConfig
from dwrl_jax.planning import chips, counts, work

# Temporaries beside what is counted, from compiled plans of 3B to 8B models on TPU v5e: the sampler keeps each key and
# value up to three times more while a region grows, and half of the weights while it lays them out; an update has a
# quarter more than its counted parts.
COPIES, LAID_OUT, BESIDE = 3, 0.5, 1.25


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `--tune` chooses: the mesh, and how a step is split. `sampled` are the pairs sampled at a time."""

    data: int
    fsdp: int
    tensor: int
    micro_batches: int
    remat: str
    sampled: int
    spread: bool

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.data, self.fsdp, self.tensor

    def flags(self) -> str:
        """The flags of a command that take the choice."""
        keys = {f"mesh.{axis}": size for axis, size in zip(sharding.AXES, self.mesh)} | {
            "optim.micro_batches": self.micro_batches,
            "model.remat": self.remat,
            "sampler.batch_size": self.sampled,
            "sampler.spread": self.spread,
        }
        return " ".join(f"--config.{key}={value}" for key, value in keys.items())


@dataclasses.dataclass(frozen=True)
class Job:
    """The step that a choice is made for. `votes` are the thoughts of a row of an evaluation, 0 without evaluation."""

    model: ModelConfig
    pairs: int
    prefix: int
    group: int
    thought: int
    question: int
    phases: int
    empty_thought: bool = False
    samples: bool = True
    keeps_start: bool = False
    cache: str = ""  # types of keys and values, and of matrices, in decoding
    weights: str = ""
    moments: int = 8  # bytes of the optimizer's state per trained parameter
    adapters: int | None = None  # numbers of all adapters; None where all weights are trained
    passed: float = 0.0  # of these, those that a token passes through
    frozen: int = 0  # bytes of the weights beside adapters
    evaluated: int = 0
    votes: int = 0

    def sizes(self, learnt: bool = False) -> counts.Sizes:
        group = self.group + (learnt and self.empty_thought)
        return counts.Sizes(2 * self.pairs, self.prefix, group, self.thought, self.question)


@dataclasses.dataclass(frozen=True)
class Part:
    """Bytes of a device while a part of a step runs, and the roofline of each of its phases."""

    used: float
    phases: dict[str, dict]

    @property
    def seconds(self) -> float:
        return sum(phase["seconds"] for phase in self.phases.values())


def share_of(job: Job, choice: Choice, pairs: int) -> counts.Share:
    """A device's part of `pairs` pairs."""
    return counts.Share(
        rows=2 * pairs // (choice.data * choice.fsdp),
        tensor=choice.tensor,
        devices=choice.data * choice.fsdp * choice.tensor,
        parts=pairs // min(choice.sampled or pairs, pairs),
        experts=choice.fsdp,
        spread=choice.fsdp if choice.spread else 1,
        cache=job.cache,
        weights=job.weights,
    )


def state_bytes(job: Job, choice: Choice) -> float:
    """Bytes of a device's trained parameters, in float32, and of their moments."""
    return _trained(job, choice) * (4 + job.moments)


def kept_bytes(job: Job, choice: Choice) -> float:
    """Bytes of a device that stay in memory: the state, and frozen weights or a starting model beside it."""
    if job.adapters is not None:
        return state_bytes(job, choice) + job.frozen / (choice.tensor * choice.fsdp)
    return _trained(job, choice) * (4 + job.moments + 4 * job.keeps_start)


def _trained(job: Job, choice: Choice) -> float:
    """A device's part of the numbers that are trained."""
    if job.adapters is not None:
        return job.adapters / (choice.tensor * choice.fsdp)
    return counts.on_device(job.model, counts.parameters(job.model), choice.tensor) / choice.fsdp


def sampling(chip: chips.Chip, job: Job, choice: Choice) -> Part:
    """Prefixes and thoughts of a step. Its memory is at least that of an evaluation, which samples too."""
    c, s, share = job.model, job.sizes(), share_of(job, choice, job.pairs)
    flops = counts.prefix_flops(c, s), counts.thought_flops(c, s)
    reads = counts.prefix_reads(c, s, share), counts.thought_reads(c, s, share)
    sent = _sampling_sent(c, s, share, choice)
    phases = {
        name: work.roofline(chip, flops[i] / share.devices, reads[i], sent[i])
        for i, name in enumerate(("prefixes", "thoughts"))
    }
    used = _sampling_used(job, s, share, choice)
    if job.votes:
        voted = dataclasses.replace(s, rows=2 * job.evaluated, group=job.votes)
        used = max(used, _sampling_used(job, voted, share_of(job, choice, job.evaluated), choice))
    return Part(used, phases)


def _sampling_used(job: Job, s: counts.Sizes, share: counts.Share, choice: Choice) -> float:
    c = job.model
    weights = counts.decode_weights(c, share) + LAID_OUT * counts.gathered_weights(c, share)
    return kept_bytes(job, choice) + weights + (1 + COPIES) * counts.region_bytes(c, s, share)


def _sampling_sent(c: ModelConfig, s: counts.Sizes, share: counts.Share, choice: Choice) -> tuple[float, float]:
    """Bytes that a device sends for the prefixes, and for all tokens of the thoughts.

    Each layer sums two outputs over "tensor". A spread feed-forward gathers its input over "fsdp" and shares out its
    output.
    """
    size, t, f = jnp.dtype(c.dtype).itemsize, choice.tensor, choice.fsdp
    weights = (f - 1) / f * counts.gathered_weights(c, share)
    wide = c.layers * c.hidden_size * size
    summed = 4 * (t - 1) / t * wide
    around = 2 * (f - 1) * wide if choice.spread else 0.0
    laid_out = weights / share.spread
    return (
        share.parts * (weights + laid_out) + share.rows * s.prefix * summed,
        share.rows * s.group * s.thought * (summed + around),
    )


def update(chip: chips.Chip, job: Job, choice: Choice) -> Part:
    """All phases of an update."""
    c, s = dataclasses.replace(job.model, remat=choice.remat), job.sizes(learnt=True)
    share, state = share_of(job, choice, job.pairs), state_bytes(job, choice)
    passed = None if job.adapters is None else job.passed
    flops = counts.update_flops(c, s, job.phases, passed) / share.devices
    reads = counts.update_reads(c, s, share, job.phases, choice.micro_batches, round(state), job.adapters)
    sent = _update_sent(c, s, share, job, choice)
    return Part(_update_used(c, s, share, job, choice), {"update": work.roofline(chip, flops, reads, sent)})


def _tables(c: ModelConfig) -> int:
    """Numbers of the embedding and the lm-head."""
    return (1 if c.tied else 2) * c.vocab_size * c.hidden_size


def _update_sent(c: ModelConfig, s: counts.Sizes, share: counts.Share, job: Job, choice: Choice) -> float:
    """Weights gathered in the forward and in the backward pass, gradients summed, and two sums over "tensor" in each.

    Activations that are computed again cost a further sum. Gradients of the tables are summed whole: those of the
    embedding in the type of the computation, those of the lm-head in float32. Beside adapters no weight has a gradient.
    """
    size, t, f, rows = jnp.dtype(c.dtype).itemsize, choice.tensor, choice.fsdp, choice.data * choice.fsdp
    tables = (size + 2 * 4) * c.vocab_size * c.hidden_size / t
    layers = counts.gathered_weights(c, share) - _tables(c) * size / t
    if job.adapters is not None:
        tables, layers = 0.0, 4 * job.adapters / t
    gathered = 2 * (f - 1) / f * counts.gathered_weights(c, share)
    summed = (f - 1) / f * layers + 2 * (rows - 1) / rows * tables
    copies = 2 * (choice.data - 1) / choice.data * layers / f
    tokens = share.rows * (s.prefix + s.group * s.branch)
    sums = (4 + (choice.remat == "full")) * 2 * (t - 1) / t * tokens * c.layers * c.hidden_size * size
    return job.phases * (choice.micro_batches * (gathered + summed + copies) + sums)


def _update_used(c: ModelConfig, s: counts.Sizes, share: counts.Share, job: Job, choice: Choice) -> float:
    """State, sums of gradients, tables, what a micro-batch keeps for its backward pass, and a layer's own numbers."""
    size, t = jnp.dtype(c.dtype).itemsize, choice.tensor
    sums = 2 * 4 * _trained(job, choice)
    tables = (size + 4 * (job.adapters is None)) * 2 * c.vocab_size * c.hidden_size / t
    tokens = share.rows / choice.micro_batches * (s.prefix + s.group * s.branch)
    heads = (2 * c.heads + 2 * c.kv_heads * counts.copies_of_heads(c, t)) * c.head_dim
    narrow = c.hidden_size + heads / t
    products = narrow + 2 * counts.mlp_width(c) / t
    kept = {"full": 0.0, "narrow": narrow, "dots": products, "none": 3 * products + 2 * c.hidden_size}[choice.remat]
    layer = tokens * (3 * counts.mlp_width(c) / t + 8 * c.hidden_size) * 4
    return kept_bytes(job, choice) + BESIDE * (
        sums + tables + layer + tokens * c.layers * (c.hidden_size + kept) * size
    )
