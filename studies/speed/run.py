"""The times of sampling, updates and whole steps of a random model on this machine. A page and a picture go to docs/.

Each measurement is a training step as the loop runs it: sample a group of thoughts for every response, then update
with DWRL's two phases. Sizes are numbers of tokens; `prompts` counts responses (two per pair) and `group` the thoughts
per response. Within a sweep, time should be a straight line over the computed positions.
"""

import argparse
import datetime
import functools
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))

from dwrl_jax.core.types import PreferenceBatch, TrainState
from dwrl_jax.generation.sampler import SamplerOptions
from dwrl_jax.judge.judge import Judge
from dwrl_jax.judge.thoughts import sample
from dwrl_jax.models import hf
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS
from dwrl_jax.models.transformer import Decoder
from dwrl_jax.objectives.dwrl import Hyper, phases
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import make_train_step
from studies.speed.contenders.dwrl import FullJudge
from studies.speed.page import SWEEPS, WORKS, report, write

ROOT = Path(__file__).parents[2]


def qwen25(vocab_size: int, hidden: int, mlp: int, layers: int, heads: int) -> dict:
    """A config.json with tied embeddings and two key/value heads, as the small models of the family are."""
    changes = {"vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": mlp}
    changes |= {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": 2}
    return PRESETS["qwen2.5-3b"] | changes


SHAPES = PRESETS | {
    "tiny": qwen25(256, 64, 128, 1, 4),
    "small": qwen25(8192, 512, 1408, 8, 8),
    "qwen2.5-0.5b": qwen25(151936, 896, 4864, 24, 14),
}
BASE = {"group": 8, "plen": 256, "new": 128}
VALUES = {"group": [2, 4, 8, 16, 32], "plen": [64, 128, 256, 512, 1024], "new": [16, 32, 64, 128, 256]}


def make_judge(shape: str, dtype: str) -> FullJudge:
    config = model_config(SHAPES[shape], dtype=dtype, param_dtype=dtype)
    return FullJudge(Decoder(config), question=(config.vocab_size - 1,), answers=(0, 1), pad=0)


def make_inputs(judge: Judge, sizes: dict, seed: int):
    """Random pairs without padding, and a sampling key."""
    pairs, vocab_size = sizes["prompts"] // 2, judge.model.config.vocab_size
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (pairs, 2, sizes["plen"]), np.int32)
    batch = PreferenceBatch(
        prefix=jnp.asarray(tokens),
        prefix_len=jnp.full((pairs, 2), sizes["plen"], jnp.int32),
        answer=jnp.zeros((pairs, 2), jnp.int32),
        valid=jnp.ones(pairs, bool),
        pair_id=jnp.arange(pairs, dtype=jnp.int32),
    )
    return batch, jax.random.key(seed)


def compile_programs(judge: Judge, optimizer, state: TrainState, sizes: dict):
    """Sampler and update of these sizes, and the seconds for tracing and compiling both."""
    batch, key = make_inputs(judge, sizes, 0)
    options = SamplerOptions(group_size=sizes["group"], max_thought=sizes["new"])
    start = time.perf_counter()
    sampler = jax.jit(functools.partial(sample, judge, options)).lower(state.params, batch, key)
    update = make_train_step(judge, optimizer, phases(Hyper()), micro_batches=1)
    update = update.lower(state, batch, sampler.out_info[0])
    programs = sampler.compile(), update.compile()
    return programs, time.perf_counter() - start


def timed_step(programs, state: TrainState, batch: PreferenceBatch, key):
    """The next state and the seconds of every work. A step waits for its thoughts, as the training loop does."""
    sampler, update = programs
    jax.block_until_ready((state, batch))
    start = time.perf_counter()
    thoughts, *_ = jax.block_until_ready(sampler(state.params, batch, key))
    middle = time.perf_counter()
    state, _ = jax.block_until_ready(update(state, batch, thoughts))
    end = time.perf_counter()
    return state, {"sample": middle - start, "update": end - middle, "step": end - start}


def measure(judge: Judge, all_sizes: list[dict], repeats: int) -> list[dict]:
    """A row per sizes. Each round goes over all of them, so that a slow minute of the machine spreads over all."""
    optimizer = make_optimizer(OptimSettings(warmup=0, schedule="constant"), phases=2)
    params = hf.random_params(judge.model.config, 0)
    state = TrainState(jnp.int32(0), params, optimizer.init(params))
    rows, all_programs = [], []
    bar = tqdm(total=len(all_sizes) * (1 + repeats), disable=not sys.stderr.isatty(), dynamic_ncols=True)
    for sizes in all_sizes:
        bar.set_description("compile")
        programs, seconds = compile_programs(judge, optimizer, state, sizes)
        all_programs.append(programs)
        rows.append({"sizes": sizes, "compile_s": seconds, "seconds": {work: [] for work in WORKS}})
        bar.update()
    for seed in range(repeats):
        bar.set_description(f"round {seed + 1} of {repeats}")
        for row, programs in zip(rows, all_programs):
            state, seconds = timed_step(programs, state, *make_inputs(judge, row["sizes"], seed))
            for work in WORKS:
                row["seconds"][work].append(seconds[work])
            bar.update()
    bar.close()
    return rows


def machine() -> dict:
    """The device, the host and the versions behind the figures."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    described = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        commit = subprocess.run(described, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "device": jax.devices()[0].device_kind,
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "commit": commit,
        "date": datetime.date.today().isoformat(),
    }


def positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def positives(text: str) -> list[int]:
    return sorted({positive(part) for part in text.split(",")})


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The flags; a bad one ends the program with one line and exit code 2."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--FLAG=VALUE ...]; --help lists the flags", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--shape", choices=SHAPES, default="small", help="the model's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=positive, default=4, help="responses, two per pair")
    for name, meaning in SWEEPS.items():
        parser.add_argument(f"--{name}", type=positive, default=BASE[name], help=f"{meaning}, where not swept")
        parser.add_argument(f"--{name}s", type=positives, default=VALUES[name], help="its sweep, e.g. 2,4,8")
    parser.add_argument("--sweeps", default=",".join(SWEEPS), help="which of them, e.g. group,plen")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds of measurements")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder")
    parser.add_argument("--from-json", type=Path, help="draw these figures again, measure nothing")
    a = parser.parse_args(arguments)
    a.sweeps = a.sweeps.split(",")
    longest = max([a.plen, *a.plens]) + max([a.new, *a.news]) + 2
    if unknown := set(a.sweeps) - SWEEPS.keys():
        parser.error(f"--sweeps: {', '.join(sorted(unknown))!r} is none of {', '.join(SWEEPS)}")
    if a.prompts % 2:
        parser.error(f"--prompts={a.prompts}: two responses make a pair, so it must be even")
    if longest > (limit := SHAPES[a.shape]["max_position_embeddings"]):
        parser.error(f"--plen(s), --new(s): together up to {longest} tokens, and --shape={a.shape} takes {limit}")
    if a.output.exists() and not a.output.is_dir():
        parser.error(f"--output={a.output}: not a folder")
    if path := a.from_json:
        try:
            a.from_json = json.loads(a.from_json.read_text(encoding="utf-8"))
            report(a.from_json, "")
        except (OSError, ValueError, LookupError, TypeError, StopIteration) as error:
            parser.error(f"--from-json={path}: no figures of this program ({type(error).__name__}: {error})")
    return a


def main(arguments: list[str] | None = None) -> None:
    a = parse(arguments)
    data = a.from_json
    if not data:
        base = {name: getattr(a, name) for name in ("prompts", *SWEEPS)}
        sweeps = {name: getattr(a, f"{name}s") for name in a.sweeps}
        points = [base | {name: value} for name in sweeps for value in sweeps[name]]
        points = [sizes for i, sizes in enumerate(points) if sizes not in points[:i]]
        command = shlex.join(["python", "studies/speed/run.py", *(sys.argv[1:] if arguments is None else arguments)])
        data = {"command": command, "shape": a.shape, "dtype": a.dtype, "repeats": a.repeats, "base": base}
        data |= {"sweeps": sweeps, "machine": machine()}
        data["points"] = measure(make_judge(a.shape, a.dtype), points, a.repeats)
    print("wrote", *write(data, a.output))


if __name__ == "__main__":
    main()
