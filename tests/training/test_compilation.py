"""Invariance: what a run compiles, keeps and records of its programs; memory of the update against the vocabulary."""

import collections
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp

from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch, TrainState
from dwrl_jax.data import world
from dwrl_jax.judge.judge import Judge
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives import dwrl
from dwrl_jax.settings.commandline import parse
from dwrl_jax.training import loop
from dwrl_jax.training import run as train
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import make_train_step

REPO = Path(__file__).parents[2]


@contextlib.contextmanager
def compilations():
    """Counts of programs by the name of their function, while they are compiled."""
    found = collections.Counter()

    def note(event, seconds, **about):
        if event.endswith("backend_compile_duration"):
            found[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def write_pairs(path, count=24):
    """Pairs of the built-in world, every second one twice as long."""
    made = world.make_world(0)
    pairs = [world.pair(made, "train", index) for index in range(count)]
    with open(path, "w") as file:
        for index, pair in enumerate(pairs):
            prompt = " ".join([pair.prompt[0]["content"]] * (1 + index % 2))
            file.write(json.dumps({"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}) + "\n")


def test_a_run_compiles_no_more_than_its_buckets_and_three(tmp_path, monkeypatch):
    """Two buckets: a sampler and an update for each, evaluation with the same sampler, and the first state."""
    write_pairs(tmp_path / "pairs.jsonl")
    files = [f"--config.data.{part}={tmp_path / 'pairs.jsonl'}" for part in ("train", "eval")]
    arguments = [f"--config={REPO}/configs/qwen3b.py:smoke", f"--workdir={tmp_path / 'run'}", *files]
    more = ["data.buckets=(20,64)", "data.window=1", "optim.steps=6", "eval.every=3", "data.batch_size=2"]
    config, workdir = parse([*arguments, "--config.eval.batch_size=2", *(f"--config.{key}" for key in more)])
    seen = {}

    def counted(run):
        with compilations() as found:
            result = original(run)
        seen.update(found, buckets=len(run.batches.buckets))
        return result

    original = loop.train
    monkeypatch.setattr(loop, "train", counted)
    train.fit(config, workdir)
    buckets = seen.pop("buckets")
    seen.pop("jit(stage)", None)  # the checkpoint library's own copies to the host, one for each kind of array
    assert seen["jit(sample_and_weigh)"] == seen["jit(step)"] == buckets == 2, "both buckets are to be met"
    assert sum(seen.values()) <= buckets + 3, seen


def update_bytes(vocabulary):
    """Bytes of arguments, results and temporaries of the compiled update, hidden size 512, nothing recomputed."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8}
    config = model_config(PRESETS["qwen2.5-3b"] | sizes | {"num_key_value_heads": 2, "vocab_size": vocabulary})
    judge = Judge(Decoder(config), question=(3, 4, 5), answers=(1, 2), pad=0)
    optimizer = make_optimizer(OptimSettings(warmup=0, schedule="constant"), phases=2)

    def arguments():
        token = jnp.zeros((1, 1, 1), jnp.int32)
        params = nn.meta.unbox(judge.model.init(jax.random.key(0), token, token))
        state = TrainState(jnp.int32(0), params, optimizer.init(params))
        side, group = jnp.zeros((4, 2), jnp.int32), jnp.zeros((4, 2, 8), jnp.int32)
        batch = PreferenceBatch(jnp.zeros((4, 2, 256), jnp.int32), side, side, side[:, 0] > 0, side[:, 0])
        thought = jnp.zeros((4, 2, 8, 128), jnp.int32)
        return state, batch, ThoughtBatch(thought, group, thought.astype(jnp.float32))

    step = make_train_step(judge, optimizer, dwrl.phases(dwrl.Hyper()), micro_batches=1)
    found = step.lower(*jax.eval_shape(arguments)).compile().memory_analysis()
    return (
        found.argument_size_in_bytes + found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    )


def test_memory_hardly_grows_with_the_vocabulary():
    """8,192 thought tokens: their logits over 152,064 words would be 5 GB, more than the half that is allowed."""
    assert update_bytes(152064) < 1.5 * update_bytes(8192)


def test_programs_are_kept_for_the_next_start(tmp_path):
    """In the workdir unless JAX was told a place; and `profile` traces the steps after the first."""
    arguments = [f"--config={REPO}/configs/qwen3b.py:smoke", f"--workdir={tmp_path}", "--config.eval.pairs=0"]
    own = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "dwrl_jax.train", *arguments, "--config.profile=True"]
    subprocess.run(command, check=True, cwd=REPO, env=own, capture_output=True)
    kept = {path.name.split("-")[0] for path in (tmp_path / "compiled").glob("*-cache")}
    assert {"jit_sample_and_weigh", "jit_step"} <= kept
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["step_2"]
    assert list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))
