"""The tuner: its best choice is that of an exhaustive search, and its counts are near those of compiled programs."""

import dataclasses
import itertools
import json

import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.models.families import model_config
from dwrl_jax.models.families.presets import PRESETS, published, shrink
from dwrl_jax.plan import main as plan_main
from dwrl_jax.planning import chips, counted, counts, tune
from dwrl_jax.planning.counted import Choice, Job
from dwrl_jax.planning.model import model_of
from dwrl_jax.planning.tune_text import picture, tuned_table
from dwrl_jax.settings.commandline import parse_config

SMALL = shrink(PRESETS["qwen2.5-3b"], 512, num_attention_heads=8, num_key_value_heads=4)
# links, memory and compute slow enough that each of them bounds some choices
SLOW = chips.Chip("slow", 10**8, 1e10, 1e9, 1e8, "made up")


def job(**other) -> Job:
    model = model_config(SMALL, dtype="bfloat16")
    given = {"model": model, "pairs": 8, "prefix": 64, "group": 2, "thought": 16, "question": 3, "phases": 2}
    return Job(**given | other)


def exhaustive(chip, job, devices):
    """(seconds, bytes) of every combination of all keys that is allowed, each computed by itself."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    c = job.model
    for data, fsdp, tensor in itertools.product(sizes, repeat=3):
        keys = c.kv_heads % tensor == 0 or tensor % c.kv_heads == c.heads % tensor == 0
        whole = data * fsdp * tensor == devices and keys and c.hidden_size % fsdp == 0
        if not whole or 2 * job.pairs % (data * fsdp):
            continue
        splits = itertools.product(range(1, job.pairs + 1), tune.REMAT_POLICIES, range(job.pairs), (False, True))
        for micro, remat, sampled, spread in splits:
            choice = Choice(data, fsdp, tensor, micro, remat, sampled, spread)
            parts = [job.pairs / micro, job.pairs / (sampled or 1), 2 * (sampled or 1) / (data * fsdp)]
            parts[2] = parts[2] if sampled else 1
            parts.append(2 * job.pairs / micro / (data * fsdp))
            if any(part != int(part) for part in parts) or (spread and (fsdp == 1 or c.mlp_size % (tensor * fsdp))):
                continue
            drawn, learnt = counted.sampling(chip, job, choice), counted.update(chip, job, choice)
            yield drawn.seconds + learnt.seconds, max(drawn.used, learnt.used)


@pytest.mark.parametrize("devices, memory", [(4, 10**7), (8, 3 * 10**6)])
def test_the_best_choice_is_that_of_an_exhaustive_search(devices, memory):
    chip = dataclasses.replace(SLOW, memory=memory)
    found = sorted(tune.count_all(chip, job(), devices), key=lambda each: each.rank)
    all_of_them = list(exhaustive(chip, job(), devices))
    assert len(found) == len(all_of_them)
    fitting = [seconds for seconds, used in all_of_them if used <= memory]
    assert 0 < len(fitting) < len(all_of_them), "memory must rule some choices out"
    best = next(each for each in found if each.used <= memory)
    assert best.seconds <= min(fitting) + 1e-3
    assert best.seconds > min(seconds for seconds, _ in all_of_them), "the fastest of all must not fit"


def test_the_least_bound_ranks_first_then_the_time_without_overlap_then_memory():
    figures = [(9, 1.0, 5.0), (8, 1.0, 6.0), (9, 2.0, 3.0), (1, 2.0, 4.0), (5, 2.0, 4.0)]
    ranked = [tune.Counted(None, *each, {}) for each in figures]
    shuffled = [ranked[i] for i in (3, 0, 4, 2, 1)]
    assert sorted(shuffled, key=lambda each: each.rank) == ranked


def test_the_frontier_has_each_choice_that_no_other_beats():
    found = sorted(tune.count_all(SLOW, job(), 4), key=lambda each: each.rank)
    kept = tune.frontier(found)
    assert len(kept) > 2 and kept[0] is found[0]
    for each in found:
        assert any(best.seconds <= each.seconds + 1e-3 and best.used <= each.used for best in kept)


def test_no_choice_breaks_the_batch_or_the_model():
    found = list(tune.count_all(SLOW, job(evaluated=2, votes=3), 8))
    assert {each.choice.tensor for each in found} == {2, 4, 8}, "eight query heads, and four rows of an evaluation"
    for each in found:
        choice = each.choice
        rows = choice.data * choice.fsdp
        assert 2 * 8 % rows == 2 * 2 % rows == 2 * (8 // choice.micro_batches) % rows == 0
        assert not choice.spread or choice.fsdp > 1


def test_one_device_sends_nothing_and_more_of_them_do():
    def sent(data, fsdp, tensor, spread=False):
        choice = Choice(data, fsdp, tensor, 2, "full", 0, spread)
        parts = counted.sampling(SLOW, job(), choice), counted.update(SLOW, job(), choice)
        return [sum(phase["sent_bytes"] for phase in part.phases.values()) for part in parts]

    assert sent(1, 1, 1) == [0, 0]
    assert sent(4, 1, 1)[0] == 0 < sent(4, 1, 1)[1], "copies of the weights sum gradients alone"
    assert min(sent(1, 4, 1)) > 0 and min(sent(1, 1, 4)) > 0
    assert sent(1, 4, 1)[0] != sent(1, 4, 1, spread=True)[0]


def test_sampling_in_parts_reads_weights_again_and_holds_less():
    whole, halves = (counted.sampling(SLOW, job(), Choice(1, 1, 1, 1, "full", size, False)) for size in (0, 4))
    (once, twice) = (part.phases["thoughts"]["memory_bytes"] for part in (whole, halves))
    assert once < twice < 2 * once and halves.used < whole.used


def test_an_evaluation_with_more_thoughts_than_a_step_decides_the_memory():
    choice = Choice(1, 1, 1, 1, "full", 0, False)
    step, few, many = (
        counted.sampling(SLOW, job(evaluated=8 * bool(votes), votes=votes), choice).used for votes in (0, 2, 20)
    )
    assert step == few < many


def test_adapters_alone_are_summed_and_have_moments():
    """Weights of 2 bytes, adapters of a hundredth of their numbers; each of 1 x 4 x 2 devices holds an eighth."""
    numbers = counts.parameters(job().model)
    few = job(adapters=numbers // 100, passed=numbers / 100, frozen=2 * numbers, keeps_start=True)
    choice = Choice(1, 4, 2, 2, "dots", 0, False)
    assert counted.state_bytes(few, choice) == numbers // 100 * 12 / 8
    assert counted.kept_bytes(few, choice) == numbers // 100 * 12 / 8 + 2 * numbers / 8
    assert counted.kept_bytes(job(keeps_start=True), choice) == pytest.approx(numbers * 16 / 8, rel=0.01)
    whole, beside = (counted.update(SLOW, each, choice) for each in (job(), few))
    sent, less = (part.phases["update"]["sent_bytes"] for part in (whole, beside))
    assert less < sent and beside.used < whole.used
    choice = dataclasses.replace(choice, fsdp=8, tensor=1)
    gathered = 2 * counts.gathered_weights(job().model, counted.share_of(job(), choice, 8))  # forward and backward
    sent = counted.update(SLOW, few, choice).phases["update"]["sent_bytes"]
    assert sent == pytest.approx(2 * 2 * 7 / 8 * (gathered + 4 * few.adapters)), "two phases of two micro-batches"
    assert 0.6 < beside.phases["update"]["flops"] / whole.phases["update"]["flops"] < 0.75, "two passes of three"


def test_a_config_with_adapters_has_its_adapters_counted():
    """Rank 4 on q_proj and v_proj: 4 x (inputs + outputs) numbers in each layer."""
    flags = ["--config.lora.rank=4", "--config.lora.targets=('q_proj','v_proj')"]
    config, _ = parse_config(["--config=configs/qwen7b.py:smoke", "--config.eval.pairs=0", *flags], {})
    shape, tokens, _ = model_of(config, "cpu")
    found = tune.job_of(config, shape, tokens)
    width, heads = shape.hidden_size, (shape.heads + shape.kv_heads) * shape.head_dim
    assert found.adapters == found.passed == shape.layers * 4 * (2 * width + heads)
    assert found.frozen == 2 * counts.parameters(shape) and found.keeps_start


# of two that are compiled the second choice of 7B is the faster one; of the others only the first was compiled
CHOSEN = [("qwen3b", 16, 1), ("llama3b", 16, 1), ("llama8b", 64, 1), ("qwen3_8b", 64, 1), ("qwen7b", 64, 2)]


@pytest.mark.parametrize("name, devices, best", CHOSEN)
def test_the_configs_take_what_ranks_first_for_their_slices_of_v5e(name, devices, best):
    config, _ = parse_config([f"--config=configs/{name}.py"], {})
    shape, tokens, _ = model_of(config, "v5e")
    chip, job = chips.TPUS["v5e"], tune.job_of(config, shape, tokens)
    found = sorted(tune.count_all(chip, job, devices), key=lambda each: each.rank)
    fitting = [each.choice for each in found if each.used <= chip.memory]
    data, tensor = config.mesh.data, config.mesh.tensor
    split = config.optim.micro_batches, config.model.remat, config.sampler.batch_size, config.sampler.spread
    assert Choice(data, devices // (data * tensor), tensor, *split) in fitting[:best]


# compiled by `python -m dwrl_jax.plan --config=configs/qwen7b.py --topology=v5e:8x8`, bytes of a device
COMPILED = [("full", False, 6.20, 7.60, 322e9), ("dots", False, 4.65, 12.1, 293e9)]


@pytest.mark.parametrize("remat, spread, seconds, gib, sent", COMPILED)
def test_counted_figures_of_7b_are_near_the_compiled_ones(remat, spread, seconds, gib, sent):
    model = model_config(published("Qwen/Qwen2.5-7B-Instruct"), dtype="bfloat16")
    whole = job(model=model, pairs=64, prefix=1024, group=8, thought=512, question=24)
    learnt = counted.update(chips.TPUS["v5e"], whole, Choice(1, 16, 4, 8, remat, 0, spread))
    assert learnt.seconds == pytest.approx(seconds, rel=0.01)
    assert learnt.used == pytest.approx(gib * 2**30, rel=0.15)
    assert learnt.phases["update"]["sent_bytes"] == pytest.approx(sent, rel=0.1)


def test_tuning_compiles_the_best_and_prints_its_flags(tmp_path, monkeypatch, capsys):
    chip = dataclasses.replace(SLOW, memory=10**9)
    cpu = chips.topology("cpu:1")[1]
    monkeypatch.setattr(chips, "topology", lambda name: (chip, cpu))
    smoke = ["--config=configs/qwen7b.py:smoke", "--config.data.buckets=(64,)", "--config.eval.pairs=0"]
    written = f"--json={tmp_path / 'tuned.json'}", f"--picture={tmp_path / 'tuned.svg'}"
    with pytest.raises(SystemExit) as ended:
        plan_main([*smoke, "--topology=v5e:1x1", "--tune", *written])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "tuned.json").read_text())
    best = found["best"]
    assert best["flags"] in out and len(found["compiled"]) == tune.COMPILED
    assert best["step_seconds"] == min(each["step_seconds"] for each in found["compiled"] if each["fits"])
    assert "<svg" in (tmp_path / "tuned.svg").read_text()
    parse_config([*smoke, *best["flags"].split()], {})
    (axes,) = picture(found).axes
    assert len(axes.lines) == 3 and tuned_table(found | {"best": None}).endswith("fits")


@pytest.mark.parametrize(
    "fates, tried, best", [([1, 1], 2, 1), ([0, 0, 1], 3, 2), ([0, 0, 0, 0, 1], 4, None), ([0, 1, 1], 2, 1)]
)
def test_the_fastest_that_fits_is_chosen_and_more_are_compiled_only_while_none_fits(fates, tried, best, monkeypatch):
    """The compiled figures are given here: each choice takes less time than the one before."""
    plans = iter({"fits": bool(fits), "step_seconds": 9 - i, "number": i} for i, fits in enumerate(fates))
    monkeypatch.setattr(tune, "compile_choice", lambda *_: next(plans))
    monkeypatch.setattr(chips, "topology", lambda name: (SLOW, [None] * 4))
    config, _ = parse_config(["--config=configs/qwen7b.py:smoke", "--config.eval.pairs=0"], {})
    found = tune.tune(config, "v5e:2x2")
    assert [plan["number"] for plan in found["compiled"]] == list(range(tried))
    assert found["best"] is None if best is None else found["best"]["number"] == best


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=cpu", "--tune"], "needs a chip's published speeds"),
        (["--topology=cpu", "--picture=x.png"], "only with --tune"),
        (["--topology=cpu", "--tune", "--picture=x.pdf"], "ends in .png or .svg"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    with pytest.raises((SystemExit, UserError)) as ended:
        plan_main(["--config=configs/qwen7b.py:smoke", *arguments])
    assert message in str(ended.value) + capsys.readouterr().err
