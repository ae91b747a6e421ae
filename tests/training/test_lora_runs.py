"""Whole runs with adapters: what they keep, how they go on, and who reads them."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

from dwrl_jax import objectives
from dwrl_jax.core import hosts
from dwrl_jax.judge.load import load
from dwrl_jax.models import frozen
from dwrl_jax.models.places import abstract_trained
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export
from tests.runs import fit, lines, run_command, tiny

LORA = ["--config.lora.rank=4", "--config.lora.alpha=8", "--config.optim.learning_rate=0.003"]


NEEDS = {  # flags without which an objective learns nothing from a model that knows nothing
    "sft": ["--config.data.train=world:demonstrations"],
    "irpm": ["--config.dialogue.scores=" + str(tuple(f"{kind}{i}" for kind in "so" for i in range(8)))],
}


def trained_of(workdir, which="last"):
    """What is in a checkpoint of a run with adapters."""
    _, shape = export.read_architecture(workdir)
    like = abstract_trained(shape, frozen.read(workdir / "architecture").settings)
    with checkpoint.open_manager(workdir) as manager:
        return checkpoint.restore_params(manager, which, like)


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """Two folders: the run of a reward model with adapters, and the model that it started from."""
    folder = tmp_path_factory.mktemp("lora")
    shutil.copytree(base, folder / "start")
    fit(folder / "run", f"--config.model.path={folder / 'start'}", *LORA, variant="bt,smoke")
    return folder / "run", folder / "start"


def stopped_and_gone_on(arguments, monkeypatch):
    """A run that a signal stops in its first step, and the same again, which ends."""

    def terminated(stopping):
        signal.raise_signal(signal.SIGTERM)
        return stopping[0]

    with monkeypatch.context() as patched:
        patched.setattr(hosts, "stop", terminated)
        assert run_command("train", *arguments) == 143
    assert run_command("train", *arguments) == 0


def test_a_stopped_run_goes_on_bit_for_bit(whole, tmp_path, monkeypatch, capsys):
    """With its adapters, its value head and the optimizer's state for these alone."""
    run, start = whole
    arguments = [*tiny("bt,smoke"), *LORA, f"--config.model.path={start}", f"--workdir={tmp_path}"]
    stopped_and_gone_on(arguments, monkeypatch)
    assert "goes on from there" in capsys.readouterr().err
    jax.tree.map(np.testing.assert_array_equal, trained_of(tmp_path), trained_of(run))
    for name in ("base", "trained"):
        assert (tmp_path / "eval" / f"{name}.jsonl").read_text() == (run / "eval" / f"{name}.jsonl").read_text()
    rows = [
        [{k: v for k, v in row.items() if "second" not in k} for row in lines(w / "metrics.jsonl")]
        for w in (run, tmp_path)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 4


def test_a_run_in_few_bits_goes_on_bit_for_bit(whole, tmp_path, monkeypatch):
    """Its checkpoint holds adapters and a value head alone, and its judge has the merged, restored matrices."""
    arguments = [*LORA, f"--config.model.path={whole[1]}", "--config.lora.base=nf4", "--config.eval.pairs=0"]
    fit(tmp_path / "once", *arguments, variant="bt,smoke")
    stopped_and_gone_on([*tiny("bt,smoke"), *arguments, f"--workdir={tmp_path / 'twice'}"], monkeypatch)
    once = trained_of(tmp_path / "once")
    jax.tree.map(np.testing.assert_array_equal, trained_of(tmp_path / "twice"), once)
    assert set(once) == {"lora", "params"} and set(once["params"]) == {"value_head"}
    assert frozen.read(tmp_path / "once" / "architecture").settings.base == "nf4"
    kernel, start = (
        load(folder).params["params"]["layers"]["up"]["kernel"] for folder in (tmp_path / "once", whole[1])
    )
    pair = once["lora"]["layers"]["up"]
    base = kernel - 2 * np.einsum("ldr,lrf->ldf", pair["left"], pair["right"])
    levels = {len(np.unique(np.round(block, 5))) for block in np.asarray(base[0])[:, :32]}
    assert 2 < max(levels) <= 16 and float(np.abs(base - start).max()) < 0.2 * float(np.abs(start).max())


def test_a_checkpoint_holds_what_is_trained(whole):
    """Rank-4 adapters of seven matrices in each layer, and the head: a small part of the model's weights."""
    trained, kept = trained_of(whole[0]), frozen.read(whole[0] / "architecture")
    assert set(trained) == {"lora", "params"} and set(trained["params"]) == {"value_head"}
    assert set(trained["lora"]) == {"layers"} and len(trained["lora"]["layers"]) == 7
    assert all(float(np.abs(pair["right"]).max()) > 0 for pair in trained["lora"]["layers"].values())
    assert (kept.settings.rank, kept.settings.alpha, kept.model) == (4, 8.0, str(whole[1]))
    assert kept.hash == frozen.model_hash(whole[1])


def test_a_workdir_is_a_judge_like_any_other(whole, tmp_path, capsys):
    """The merged export and the PEFT folder have its weights; the base may have moved, but not changed."""
    run, start = whole
    judge = load(run)
    assert run_command("export", f"--workdir={run}", f"--output={tmp_path / 'merged'}", "--dtype=float32") == 0
    merged = load(tmp_path / "merged")
    jax.tree.map(np.testing.assert_array_equal, merged.params, judge.params)
    assert run_command("export", f"--workdir={run}", f"--output={tmp_path / 'peft'}", "--format=peft") == 0
    peft = load(tmp_path / "peft")
    assert peft.judge.kind == judge.judge.kind == "reward"
    for ours, theirs in zip(jax.tree.leaves(judge.params), jax.tree.leaves(peft.params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2**-8 * np.abs(theirs).max())  # the run's base is in bfloat16
    shutil.copytree(run, tmp_path / "moved")
    shutil.move(start, tmp_path / "elsewhere")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "s1 o1 o2", "response": "s2 warm"}) + "\n")
    score = [f"--model={tmp_path / 'moved'}", f"--input={rows}", f"--output={tmp_path / 'scored.jsonl'}", "--votes=1"]
    assert run_command("score", *score) == 2
    assert "the model of its adapters is not there; name it by --start" in capsys.readouterr().err
    assert run_command("score", *score, f"--start={tmp_path / 'elsewhere'}") == 0
    assert "score" in lines(tmp_path / "scored.jsonl")[0]
    assert run_command("score", *score, f"--start={tmp_path / 'merged'}") == 2
    assert "not the model of the adapters" in capsys.readouterr().err
    shutil.move(tmp_path / "elsewhere", start)


@pytest.mark.slow
def test_an_adapter_goes_on(whole, tmp_path):
    """A PEFT folder as a start: its adapters are those of step 0, and its base is the frozen model."""
    run, start = whole
    assert run_command("export", f"--workdir={run}", f"--output={tmp_path / 'peft'}", "--format=peft") == 0
    more = [
        *LORA,
        f"--config.model.path={tmp_path / 'peft'}",
        "--config.optim.learning_rate=0",
        "--config.eval.pairs=0",
    ]
    fit(tmp_path / "run", *more, "--config.optim.steps=1", variant="bt,smoke")
    jax.tree.map(np.testing.assert_array_equal, trained_of(tmp_path / "run"), trained_of(run))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["lora.base=nf4"], "lora.base='nf4': there are no adapters; give a rank, such as lora.rank=16"),
        (["lora.rank=4", "lora.base=nf3"], "lora.base"),
        (["lora.alpha=8"], "lora.alpha=8.0: there are no adapters; give a rank, such as lora.rank=16"),
        (["lora.rank=-1"], "lora.rank=-1: must not be negative"),
        (["lora.rank=4", "lora.dropout=1.0"], "lora.dropout=1.0: must be"),
        (["lora.rank=4", "lora.targets=('query',)"], "lora.targets: 'query' is no target; choose of attention"),
        (["lora.rank=4", "lora.targets=('lm_head',)"], "lora.targets: 'lm_head' matches no matrix of this model"),
        (["lora.rank=4", "model.param_dtype=bfloat16"], "model.param_dtype='bfloat16'"),
    ],
)
def test_bad_input_is_one_line(base, tmp_path, capsys, flags, message):
    arguments = [*tiny(), f"--config.model.path={base}", f"--workdir={tmp_path}"]
    assert run_command("train", *arguments, *(f"--config.{flag}" for flag in flags)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]


def test_a_run_without_adapters_has_none_to_export(four_steps, tmp_path, capsys):
    assert run_command("export", f"--workdir={four_steps[0]}", f"--output={tmp_path / 'out'}", "--format=peft") == 2
    assert "this run trained all weights, so it has no adapters" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_few_bits_samples_what_it_differentiates(base, tmp_path):
    """With a KL term to the start, which is the base in the same bits: it is zero before the first update."""
    flags = [*LORA, f"--config.model.path={base}", "--config.lora.base=nf4", "--config.objective.kl=0.1"]
    fit(tmp_path, *flags, "--config.eval.every=0", "--config.optim.steps=2", variant="dwrl,smoke")
    rows = lines(tmp_path / "metrics.jsonl")
    assert len(rows) == 2 and all(row["train/logp_gap_max"] < 1e-4 for row in rows)
    assert abs(rows[0]["train/kl"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_takes_steps(base, tmp_path, name):
    """All adapters move, and the sampler's density is the one that the update differentiates."""
    kl = ["--config.objective.kl=0.1"] if "kl" in objectives.load(name).hyper.__dataclass_fields__ else []
    float32 = ["--config.lora.base=float32", "--config.eval.every=0", "--config.optim.steps=2", *kl]
    start = [f"--config.model.path={base}"] if objectives.load(name).judges[0] != "label" else []
    fit(tmp_path, *start, *LORA, *float32, *NEEDS.get(name, []), variant=f"{name},smoke")
    trained = trained_of(tmp_path)
    assert all(float(np.abs(pair["right"]).max()) > 0 for pair in trained["lora"]["layers"].values())
    rows = lines(tmp_path / "metrics.jsonl")
    assert len(rows) == 2 and all(row.get("train/logp_gap_max", 0) < 1e-4 for row in rows)
