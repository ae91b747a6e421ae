"""The programs of a run, compiled from shapes for devices that need not be there."""

import concurrent.futures
import dataclasses
import math
import os
import re
import time

import jax
import jax.numpy as jnp

from dwrl_jax.core import sharding
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch
from dwrl_jax.generation.keys import HELD_OUT, TRAINING
from dwrl_jax.judge.thoughts import for_update, with_reference
from dwrl_jax.planning import hlo
from dwrl_jax.training.programs import Programs, Recipe, abstract_start, abstract_state, make_programs


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program and its bytes on each device. Only `used` is set where the compiler found no room for it."""

    seconds: float  # of compiling
    used: int  # arguments, temporaries, code, and results that do not take an argument's place
    arguments: int = 0
    temporaries: int = 0
    code: int = 0
    alias: int = 0
    traffic: hlo.Traffic | None = None


def compile_program(recipe: Recipe, name: str, length: int, pairs: int) -> Program:
    """Compile "sample", "evaluation" or "update" for prefixes of `length` tokens, as a run would."""
    began = time.perf_counter()
    with jax.set_mesh(recipe.mesh):
        lowered = lower(recipe, name, length, pairs)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return Program(time.perf_counter() - began, wanted_bytes(error))
    seconds, needed = time.perf_counter() - began, compiled.memory_analysis()
    results = needed.output_size_in_bytes - needed.alias_size_in_bytes
    beside = needed.temp_size_in_bytes + needed.generated_code_size_in_bytes
    return Program(
        seconds=seconds,
        used=needed.argument_size_in_bytes + beside + results,
        arguments=needed.argument_size_in_bytes,
        temporaries=needed.temp_size_in_bytes,
        code=needed.generated_code_size_in_bytes,
        alias=needed.alias_size_in_bytes,
        traffic=hlo.traffic(compiled.as_text(), recipe.mesh.size),
    )


def lower(recipe: Recipe, name: str, length: int, pairs: int) -> jax.stages.Lowered:
    """A program as `compile_program` names it, traced but not yet compiled. The recipe's mesh must be set."""
    whole = sharding.whole(recipe.mesh)
    programs, state = make_programs(recipe), abstract_state(recipe)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((pairs, *shape), dtype, sharding=whole)

    batch = PreferenceBatch(
        prefix=array(jnp.int32, 2, length),
        prefix_len=array(jnp.int32, 2),
        answer=array(jnp.int32, 2),
        valid=array(jnp.bool_),
        pair_id=array(jnp.int32),
        margin=array(jnp.float32) if recipe.margins and name != "evaluation" else None,
    )
    start = abstract_start(recipe) if recipe.keeps_start else None
    if name == "sample":
        return programs.sample.lower(state.params, start, batch, TRAINING, 0)
    if name == "evaluation":
        return programs.sample_votes.lower(state.params, start, batch, HELD_OUT, 0)
    thoughts = _thoughts(recipe, programs, state.params, start, batch)
    thoughts = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), thoughts)
    return programs.train_step.lower(state, batch, thoughts, None, start if recipe.lora else None)


def _thoughts(recipe: Recipe, programs: Programs, params, start, batch: PreferenceBatch) -> ThoughtBatch:
    """Shapes of the longest possible thoughts that an update learns from."""
    shape = (*batch.answer.shape, 1)  # written thoughts are one for each response
    ids = jax.ShapeDtypeStruct((*shape, recipe.thoughts.sampler.max_thought), jnp.int32)
    logp = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    written = ThoughtBatch(ids, jax.ShapeDtypeStruct(shape, jnp.int32), logp)

    def make(params, start, batch, written):
        def sample():
            return programs.sample(params, start, batch, TRAINING, 0)

        thoughts, _ = for_update(recipe.thoughts, recipe.judge.end, batch, written, sample)
        if not recipe.needs_reference:
            return thoughts
        return with_reference(thoughts, programs.reference_logps(start, batch, thoughts, None))

    return jax.eval_shape(make, params, start, batch, written)


def compile_all(recipe: Recipe, length: int, wanted: dict[str, tuple[str, int]], say) -> dict[str, Program]:
    """The `wanted` programs: a kind, as compile_program takes it, and a number of pairs by name.

    Each compiler uses one processor, so as many compile at a time as there are processors.
    """

    def compile_named(name, pairs):
        program = compile_program(recipe, name, length, pairs)
        fate = "" if program.traffic else ": the compiler found no room"
        say(f"compiled {name} of {pairs} pairs in {program.seconds:.0f} s{fate}")
        return program

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {name: pool.submit(compile_named, *what) for name, what in wanted.items()}
        return {name: job.result() for name, job in jobs.items()}


def wanted_bytes(error: Exception) -> int:
    """Bytes, with its arguments, of a program that the TPU compiler refused for its size.

    Any other error is raised again.
    """
    size = re.search(r"(?:Used |\()([\d.]+)([KMG])(?: of|\) exceeds)", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not size:
        raise error
    return round(float(size[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[size[2]])


def shard_bytes(tree) -> int:
    """Bytes on each device of a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
