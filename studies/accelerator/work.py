"""The works that are measured: ceilings of the chip, decoding, updates. Each is compiled first and timed later.

A work is a function of its sizes that compiles its programs and returns a function without arguments. That function
measures and returns the figures. So many works can be compiled at the same time, and each is timed alone.
"""

import collections
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dwrl_jax.core.types import ThoughtBatch, TrainState
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.models.unstacked import unstack
from dwrl_jax.objectives.dwrl import Hyper, phases
from dwrl_jax.planning import counts
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import make_train_step
from studies.speed.contenders.dwrl import FullJudge
from studies.speed.run import SHAPES, make_inputs

REPEATS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """Sizes of a work. `prompts` counts responses, two per pair. Lengths are in tokens. `layers` 0 means all layers."""

    kind: str
    shape: str
    prompts: int
    group: int = 8
    plen: int = 512
    new: int = 128
    layers: int = 0
    remat: str = "dots"
    micro_batches: int = 1
    attention: str = "auto"
    dtype: str = "bfloat16"
    flags: str = ""  # XLA's, for this work alone

    @property
    def sizes(self) -> counts.Sizes:
        return counts.Sizes(self.prompts, self.plen, self.group, self.new, question=1)

    def judge(self) -> FullJudge:
        layers = {"num_hidden_layers": self.layers} if self.layers else {}
        numerics = {"dtype": self.dtype, "param_dtype": "float32", "remat": self.remat, "attention": self.attention}
        config = model_config(SHAPES[self.shape] | layers, **numerics)
        return FullJudge(Decoder(config), question=(config.vocab_size - 1,), answers=(0, 1), pad=0)

    def inputs(self, judge, seed: int):
        return make_inputs(judge, {"prompts": self.prompts, "plen": self.plen}, seed)


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def seconds_of(call: Callable, repeats: int = REPEATS) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
    jax.block_until_ready(call())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return taken


def median(values: list[float]) -> float:
    return float(np.median(values))


def peak_bytes() -> int | None:
    statistics = jax.devices()[0].memory_stats() or {}
    return statistics.get("peak_bytes_in_use")


def kernels_of(call: Callable, count: int = 30) -> list[tuple[str, float, int]]:
    """The names, milliseconds and numbers of the device's longest kernels in one call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        spent, calls = collections.Counter(), collections.Counter()
        for path in Path(folder).rglob("*.xplane.pb"):
            for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
                for line in plane.lines if plane.name.startswith("/device:") else ():
                    if not line.name.startswith("Stream"):
                        continue
                    for event in line.events:
                        spent[event.name] += event.duration_ns / 1e6
                        calls[event.name] += 1
    return [(name, round(ms, 4), calls[name]) for name, ms in spent.most_common(count)]


def ceilings(work: Work) -> Callable[[], dict]:
    """Bytes per second of a large copy, and FLOP per second of a large product in `work.dtype`."""
    size, n = (2**30, 8192) if jax.default_backend() != "cpu" else (2**24, 512)
    copy = jax.jit(jnp.copy)
    product = jax.jit(lambda a, b: a @ b)
    array = jax.ShapeDtypeStruct((size,), jnp.float32)
    matrix = jax.ShapeDtypeStruct((n, n), work.dtype)
    copy, product = copy.lower(array).compile(), product.lower(matrix, matrix).compile()

    def measure() -> dict:
        x = jnp.zeros(size, jnp.float32) + 0.5
        moved = 8 * size / min(seconds_of(lambda: copy(x)))
        a, b = (jax.random.normal(jax.random.key(i), (n, n), work.dtype) for i in range(2))
        return {"bytes_per_second": moved, "flops_per_second": 2 * n**3 / min(seconds_of(lambda: product(a, b)))}

    return measure


def decode(work: Work) -> Callable[[], dict]:
    """Tokens per second of whole sampling, and of its steps alone: sampling without the pass over the prefixes."""
    judge = work.judge()
    config = judge.model.config
    params = jax.eval_shape(lambda: hf.random_params(config, 0))
    batch, key = work.inputs(judge, 0)
    options = SamplerOptions(group_size=work.group, max_thought=work.new)
    unstacked = dataclasses.replace(config, scanned=False)
    start = time.perf_counter()
    sampler = jax.jit(functools.partial(sample, judge, options)).lower(params, *shapes((batch, key))).compile()
    ready = jax.jit(lambda p: (_prefix_pass(judge, p, batch), unstack(p, unstacked))).lower(params).compile()
    compile_s = time.perf_counter() - start

    def measure() -> dict:
        params = hf.random_params(config, 0)
        whole = seconds_of(lambda: sampler(params, batch, key))
        before = seconds_of(lambda: ready(params))
        share = counts.Share(rows=work.prompts, tensor=1, devices=1)
        per_step = (median(whole) - median(before)) / work.new
        return {
            "compile_s": compile_s,
            "sample_s": whole,
            "prefix_s": before,
            "step_s": per_step,
            "tokens_per_second": work.prompts * work.group * work.new / median(whole),
            "decode_tokens_per_second": work.prompts * work.group / per_step,
            "needed_bytes_per_step": counts.thought_reads(config, work.sizes, share) / work.new,
            "needed_flops_per_step": counts.thought_flops(config, work.sizes) / work.new,
            "peak_bytes": peak_bytes(),
            "kernels": kernels_of(lambda: sampler(params, batch, key)),
        }

    return measure


def _prefix_pass(judge, params, batch):
    """Keys and values of all prefixes, as the sampler computes them first."""
    prefix = batch.prefix.reshape(-1, 1, batch.prefix.shape[-1])
    positions = jnp.broadcast_to(jnp.arange(prefix.shape[-1]), prefix.shape)
    return judge.model.apply(params, prefix, positions)[1]


def update(work: Work) -> Callable[[], dict]:
    """Seconds of DWRL's two updates (Eq. 14 and Eq. 15), and their share of the chip's products.

    FLOPs are those of the mathematics: a forward and two backward passes per update, nothing for recomputation.
    """
    judge = work.judge()
    config = judge.model.config
    optimizer = make_optimizer(OptimSettings(warmup=0, schedule="constant"), phases=2)
    losses = phases(Hyper())
    step = make_train_step(judge, optimizer, losses, micro_batches=work.micro_batches)
    batch, key = work.inputs(judge, 0)
    drawn = (work.prompts // 2, 2, work.group, work.new)
    tokens = jax.random.randint(key, drawn, 0, config.vocab_size)
    old = jnp.full(drawn, -float(np.log(config.vocab_size)), jnp.float32)
    thoughts = ThoughtBatch(tokens, jnp.full(drawn[:-1], work.new), old)

    def begin():
        params = hf.random_params(config, 0)
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    start = time.perf_counter()
    program = step.lower(jax.eval_shape(begin), *shapes((batch, thoughts))).compile()
    compile_s, memory = time.perf_counter() - start, program.memory_analysis()

    def measure() -> dict:
        state = jax.block_until_ready(jax.jit(begin)())
        taken = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            state, metrics = jax.block_until_ready(program(state, batch, thoughts))
            taken.append(time.perf_counter() - start)
        needed = counts.update_flops(dataclasses.replace(config, remat="none"), work.sizes, len(losses))

        def once():
            nonlocal state
            state, metrics = program(state, batch, thoughts)
            return metrics

        return {
            "compile_s": compile_s,
            "update_s": taken[1:],
            "needed_flops": needed,
            "positions": work.prompts * (work.plen + work.group * work.sizes.branch),
            "flops_per_second": needed / median(taken[1:]),
            "peak_bytes": peak_bytes(),
            "program_bytes": getattr(memory, "temp_size_in_bytes", None),
            "finite": bool(jnp.isfinite(jnp.stack([x.mean() for x in jax.tree.leaves(metrics)])).all()),
            "kernels": kernels_of(once),
        }

    return measure


KINDS = {"ceilings": ceilings, "decode": decode, "update": update}
