"""The plan: programs are the run's own, and what they need is said before a run."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families.presets import PRESETS
from dwrl_jax.plan import FLAGS
from dwrl_jax.plan import main as plan_main
from dwrl_jax.planning import chips, counts, memory, plan
from dwrl_jax.planning.compiled import Program, compile_program, shard_bytes, wanted_bytes
from dwrl_jax.planning.model import model_of
from dwrl_jax.planning.text import table
from dwrl_jax.settings.commandline import parse_config
from dwrl_jax.training.assemble import recipe as recipe_of
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.programs import abstract_state
from dwrl_jax.training.settings import OptimSettings
from tests.planning.recipes import make_recipe
from tests.small import REPO

SMOKE = ["--config=configs/qwen7b.py:smoke", "--config.data.buckets=(64,)", "--config.sampler.group_size=1"]
ALONE = "--config.eval.pairs=0"  # without the programs of an evaluation


def test_the_largest_size_lies_on_the_line_through_two():
    assert memory.largest_size([(8, 900), (4, 500)], room=1700, unit=4) == 16
    assert memory.largest_size([(8, 900), (4, 500)], room=1699, unit=4) == 12
    assert memory.largest_size([(8, 900), (4, 500)], room=50, unit=4) == 0
    assert memory.largest_size([(8, 900), (4, 900)], room=1700, unit=4) is None


def test_sampling_in_parts_needs_less_memory():
    whole = make_recipe(max_thought=64)
    options = dataclasses.replace(whole.thoughts.sampler, batch_size=4)
    parts = dataclasses.replace(whole, thoughts=dataclasses.replace(whole.thoughts, sampler=options))
    found = [compile_program(recipe, "sample", 256, pairs=16).temporaries for recipe in (whole, parts)]
    assert found[1] < found[0] / 3, "a quarter, and the weights"


def test_the_update_changes_the_state_in_place():
    recipe = make_recipe()
    assert compile_program(recipe, "update", 64, pairs=4).alias == shard_bytes(abstract_state(recipe))


def test_a_larger_vocabulary_costs_activations_no_more_than_a_chunk():
    """Twice the vocabulary, and temporaries grow by gradients and one [chunk, vocabulary], not by [tokens, ...]."""
    size, chunk, pairs = 8192, 64, 8
    small, large = (make_recipe(vocab_size=v, chunk=chunk, micro_batches=1) for v in (size, 2 * size))
    found = [compile_program(r, "update", 64, pairs=pairs).temporaries for r in (small, large)]
    gradients = 4 * (counts.parameters(large.judge.model.config) - counts.parameters(small.judge.model.config))
    assert 0 < found[1] - found[0] - gradients <= 4 * chunk * 2 * size, "of 8 chunks of tokens"


def test_a_first_moment_in_bfloat16_saves_two_bytes_per_parameter():
    recipe, options = make_recipe(), OptimSettings(warmup=0, schedule="constant")
    half = dataclasses.replace(options, moment_dtype="bfloat16")
    found = [
        shard_bytes(abstract_state(dataclasses.replace(recipe, optimizer=make_optimizer(kind, phases=1))).opt_state)
        for kind in (options, half)
    ]
    assert found[0] - found[1] == 2 * counts.parameters(recipe.judge.model.config)


def run_plan(*arguments, of=SMOKE, **env):
    command = [sys.executable, "-m", "dwrl_jax.plan", *of, *arguments]
    return subprocess.run(command, cwd=REPO, env=os.environ | env, capture_output=True, text=True)


def test_a_plan_for_a_mesh_of_cpu_devices(tmp_path):
    """The command, in small; the KL term keeps the starting model, and one thought is as many as one vote."""
    keys = ["mesh.tensor=2", "objective.kl=0.1", "sampler.max_thought=2", "eval.votes=(1,)"]
    done = run_plan("--topology=cpu:4", *(f"--config.{key}" for key in keys), f"--json={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert {"fits", "hbm_bytes", "per_device", "programs"} <= found.keys() and found["fits"]
    assert found["mesh"] == {"data": 1, "fsdp": 2, "tensor": 2} and not found["assumed"]
    sample, update = (found["per_device"][name] for name in ("sample", "update"))
    assert sample["optimizer"] == pytest.approx(2 * sample["parameters"], rel=0.01)
    for terms in (sample, update):
        assert terms["starting_model"] == terms["parameters"] and terms["temporaries"] > 0
    assert sum(update.values()) == found["programs"]["update"]["total_bytes"] <= found["per_device"]["total"]
    assert found["programs"]["sample"]["collective_bytes_per_token"]
    assert found["phases"]["update"]["flops"] > found["phases"]["prefixes"]["flops"] > 0
    assert "fits, with" in done.stdout and done.stdout.strip() == table(found)
    assert "starting model, for the KL term" in done.stdout and "compiled sample" in done.stderr
    assert found["programs"].keys() == {"sample", "update"}, "evaluation is the program that samples in training"
    assert "evaluation of 4 pairs, 4 at a time, with 1 votes, by the program that samples in training" in done.stdout


def plan_of(arguments, topology="cpu"):
    return plan.make_plan(parse_config([*arguments, f"--topology={topology}"], FLAGS)[0], topology)


@pytest.fixture(scope="module")
def crowded():
    """A plan for a chip on which sampling with one thought and the update fit, but not evaluation with many votes."""
    small = chips.Chip("Small", 15 * 10**6, 1e12, 1e9, 1e9, "invented")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chips, "topology", lambda name: (small, jax.devices()[:1]))
        return plan_of([*SMOKE, "--config.eval.votes=(1,64)", "--config.eval.batch_size=16"])


def test_an_evaluation_that_needs_more_than_a_step_decides_whether_a_run_fits(crowded):
    assert not crowded["fits"]
    room, programs = crowded["hbm_bytes"], crowded["programs"]
    assert max(programs[name]["total_bytes"] for name in ("sample", "update")) < 0.8 * room
    assert programs["evaluation"]["total_bytes"] == crowded["per_device"]["total"] > 1.2 * room
    terms, sampling = (crowded["per_device"][name] for name in ("evaluation", "sample"))
    assert sum(terms.values()) == programs["evaluation"]["total_bytes"] and min(terms.values()) > 0
    kept = ("parameters", "optimizer", "decode_weights")
    assert [terms[name] for name in kept] == [sampling[name] for name in kept]
    # 32 rows of a prefix and 64 thoughts, where 8 rows have one
    assert terms["kv_regions"] / sampling["kv_regions"] == 32 * (64 + 64 * 8) / (8 * (64 + 8))
    assert crowded["evaluation"] == {"pairs": 16, "pairs_at_once": 16, "votes": 64}


def test_a_plan_that_does_not_fit_says_by_how_much_and_why(crowded):
    over = crowded["per_device"]["total"] - crowded["hbm_bytes"]
    *lines, verdict = table(crowded).splitlines()
    assert f"does not fit: {over / 2**30:.2f} GiB too much in evaluation, where the largest part is" in verdict
    assert any(line.split()[-3:] == ["sampling", "evaluation", "update"] for line in lines)
    sizes = crowded["largest"]
    assert sizes["evaluation_pairs"] < 16 and sizes["batch_pairs"] > 4
    assert f"largest sampler.batch_size in evaluation: at most {sizes['evaluation_pairs']} pairs" in "\n".join(lines)
    assert f"largest sampler.batch_size: at least {sizes['batch_pairs']} pairs" in "\n".join(lines)
    phase = crowded["phases"]["thoughts"]
    assert phase["seconds"] == max(phase["times"].values()) == phase["memory_bytes"] / 1e9
    assert phase["bound"] == "memory"


def test_an_evaluation_in_parts_holds_the_keys_and_values_of_one():
    arguments = [*SMOKE, "--config.eval.votes=(64,)", "--config.eval.batch_size=16", "--topology=cpu"]
    found = []
    for size in (0, 4):
        config, _ = parse_config([*arguments, f"--config.sampler.batch_size={size}"], FLAGS)
        shape, tokens, _ = model_of(config, "cpu")
        recipe = recipe_of(config, shape, *tokens)
        assert memory.wanted(config, recipe)["evaluation"] == ("evaluation", 16)
        assert recipe.thoughts.sampler.batch_size == size, "what the compiled program samples at a time"
        shares = memory.share(config, recipe, "evaluation")
        found.append(counts.region_bytes(shape, memory.sizes(config, recipe, "evaluation"), shares))
    assert found[1] == found[0] / 4


def test_a_plan_of_a_baseline_without_thoughts_has_a_teacher_forced_evaluation():
    arguments = ["--config=configs/qwen7b.py:bt,smoke", "--config.data.buckets=(64,)"]
    found = plan_of(arguments)
    assert found["programs"].keys() == {"evaluation", "update"} and found["phases"].keys() == {"update"}
    assert not {"decode_weights", "kv_regions"} & found["per_device"]["evaluation"].keys()
    assert found["per_device"]["evaluation"]["temporaries"] > 0
    assert "largest eval.batch_size in evaluation: at least" in table(found)
    config, _ = parse_config([*arguments, "--topology=cpu"], FLAGS)
    tokens = 2 * config.data.batch_size * 64
    assert found["step_flops"] == 3 * counts.forward(model_of(config, "cpu")[0], tokens, 32, 0), "no branches"


@pytest.mark.parametrize("kept, programs", [((), {"sample", "evaluation"}), ((ALONE,), {"sample"})])
def test_an_evaluation_is_planned_only_where_a_run_has_one(kept, programs):
    config, _ = parse_config([*SMOKE, *kept, "--topology=cpu"], FLAGS)
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens)
    assert memory.wanted(config, recipe).keys() == programs | {"update", "other"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v7:2x2"], "--topology=v7:2x2: give a TPU's kind and shape"),
        (["--topology=cpu", "--config.mesh.tensor=4"], "mesh.tensor=4: these do not make up the 1 devices"),
        (["--topology=cpu", "--config.model.path=nobody/nothing"], "its shape is not known without a download"),
        ([], "--topology is missing, e.g. --config"),
        (["--topology=cpu", "--json=no/such/plan.json"], "its folder is not there"),
    ],
)
def test_bad_input_is_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plan", *SMOKE, *arguments])
    with pytest.raises(SystemExit) as ended:
        plan_main()
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and message in printed and len(printed.strip().splitlines()) == 1


def test_a_gpu_is_planned_only_where_one_is():
    try:
        jax.devices("gpu")
    except RuntimeError:
        with pytest.raises(UserError, match="JAX compiles for GPUs only where one is attached"):
            chips.topology("gpu")
    else:
        assert chips.topology("gpu")[0].memory > 0


LIBTPU = "compiling for TPUs needs libtpu: pip install -e '.[tpu]'"


def test_what_a_refused_program_wanted_is_read():
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.48G hbm. Exceeded by 5.02G."
    assert wanted_bytes(RuntimeError(older)) == 20.5 * 2**30
    with pytest.raises(RuntimeError, match="INTERNAL"):
        wanted_bytes(RuntimeError("INTERNAL: Used 1G of 2G"))


def test_a_tpu_program_that_is_too_large_is_refused_with_its_bytes():
    pytest.importorskip("libtpu", reason=LIBTPU)
    _, devices = chips.topology("v5e:2x2")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 4, "tensor": 1}, devices)
    array = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32, sharding=sharding.whole(mesh))  # 8 GiB
    with pytest.raises(jax.errors.JaxRuntimeError) as refused:
        jax.jit(lambda x: x * 2).lower(array).compile()
    assert wanted_bytes(refused.value) == pytest.approx(16 * 2**30, rel=0.01)


@pytest.mark.slow
def test_a_plan_for_a_tpu_without_one(tmp_path):
    pytest.importorskip("libtpu", reason=LIBTPU)
    # heads and tokens of real size, so that the kernels for TPUs are compiled; two layers, so that it takes seconds
    config = PRESETS["qwen2.5-7b"] | {"num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [
        f"--config.model.path={tmp_path}",
        "--config.sampler.max_thought=64",
        ALONE,
        "--topology=v5e:4x4",
        f"--json={tmp_path / 'plan.json'}",
    ]
    done = run_plan(*arguments, of=["--config=configs/qwen7b.py"], JAX_PLATFORMS="")
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["hbm_bytes"] == 16 * 10**9 and found["devices"] == 16
    assert found["assumed"] == ["the second question has 24 tokens"]
    state = found["per_device"]["update"]["parameters"] + found["per_device"]["update"]["optimizer"]
    assert found["programs"]["update"]["alias_bytes"] == pytest.approx(state, rel=0.01)
    assert found["phases"]["thoughts"]["bound"] == "memory" and found["step_seconds"] > 0


def test_a_run_with_adapters_keeps_frozen_weights_once_and_moments_of_adapters():
    """Its start is no second copy, and one of the four passes of an update goes through adapters alone."""
    config, _ = parse_config([*SMOKE, ALONE, "--config.lora.rank=4", "--config.objective.kl=0.1"], {}, "", lambda: "")
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens, jax.devices()[:1])
    terms = memory.memory(config, recipe, {"update": Program(0.0, 10**9)})["update"]
    trained = sum(x.size for x in jax.tree.leaves(abstract_state(recipe).params))
    assert terms["parameters"] == 2 * counts.parameters(shape) and terms["adapters"] == 4 * trained
    assert 8 * trained <= terms["optimizer"] < 8 * trained + 64 and "starting_model" not in terms
    assert trained == 4 * shape.layers * (4 * 64 + 2 * 64 + 2 * 32 + 3 * (64 + 128))
    sizes = counts.Sizes(rows=6, prefix=12, group=2, thought=11, question=3)
    full, adapted = (counts.update_flops(shape, sizes, 1, adapters) for adapters in (None, 0))
    assert adapted / full == pytest.approx((counts.passes(shape) - 1) / counts.passes(shape))


def test_a_plan_counts_weights_in_few_bits():
    """Qwen2.5-7B in nf4: its matrices in 0.516 bytes a number, also where the sampler lays them out."""
    flags = ["--config=configs/qwen7b.py", ALONE, "--config.mesh.tensor=1", "--config.sampler.batch_size=1"]
    flags += ["--config.lora.rank=16", "--config.lora.base=nf4", "--config.sampler.spread=False"]
    config, _ = parse_config(flags, {}, "", lambda: "")
    shape, tokens, _ = model_of(config, "cpu")
    recipe = recipe_of(config, shape, *tokens, jax.devices()[:1])
    terms = memory.memory(config, recipe, {"sample": Program(0.0, 0)})["sample"]
    matrices = shape.layers * counts.layer_weights(shape)
    expected = 0.516 * matrices + 2 * (counts.parameters(shape) - matrices)
    assert terms["parameters"] == pytest.approx(expected, rel=1e-3)
    assert terms["decode_weights"] == pytest.approx(expected, rel=1e-3)
    assert sum(terms.values()) - terms["temporaries"] < 13e9
