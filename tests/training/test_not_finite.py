"""A figure that is not finite: its update is skipped and counted, its pairs are written down, and the run goes on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax import train
from dwrl_jax.core.types import TrainState
from dwrl_jax.judge.thoughts import no_thoughts
from dwrl_jax.training import loop
from dwrl_jax.training import step as step_module
from dwrl_jax.training.optimizer import learning_rate, make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import gradient, make_train_step
from dwrl_jax.workdir import checkpoint
from dwrl_jax.workdir import model as export
from tests.models.test_hf_hosts import run as run_processes
from tests.runs import fit, lines, run_command, tiny
from tests.small import make_batch, make_judge

OPTIONS = OptimSettings(steps=24, learning_rate=1e-3, warmup=4)
ABSENT = 10**6  # an id without an embedding: its embedding is NaN


def three_steps(monkeypatch, moments, wrong):
    """States before the first and after each of three steps of two phases. `wrong` are the bad (step, phase, figure).

    Nothing is differentiated: both phases give the same gradient at every step.
    """
    bad = jnp.zeros((3, 2, 2))
    for step, phase, figure in wrong:
        bad = bad.at[step, phase, figure].set(jnp.nan if figure else jnp.inf)

    def gradient(judge, phase, params, step, *rest):
        grads = {"kernel": jnp.full(2, 0.1) + bad[step, phase, 0]}
        return grads, {"loss": 1.0 + bad[step, phase, 1], "broken": jnp.zeros(1, bool)}

    monkeypatch.setattr(step_module, "gradient", gradient)
    optimizer = make_optimizer(dataclasses.replace(OPTIONS, moments=moments), phases=2)
    train_step = make_train_step(None, optimizer, {"score": 0, "thought": 1}, 1)
    params = {"kernel": jnp.ones(2)}
    states = [TrainState(jnp.int32(0), params, optimizer.init(params))]
    for step in range(3):
        state, metrics = train_step(jax.tree.map(jnp.copy, states[-1]), jnp.int32(step), None)
        skipped = [bool(done) for done, _ in metrics["skipped"].values()]
        assert skipped == [any(at[:2] == (step, phase) for at in wrong) for phase in (0, 1)]
        states.append(state)
    return states


def parts(state, kind):
    """The states of this kind of optax: of Adam or of a schedule."""
    leaves = jax.tree.leaves(state.opt_state, is_leaf=lambda part: isinstance(part, kind))
    return [part for part in leaves if isinstance(part, kind)]


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


@pytest.mark.parametrize("figure", [0, 1], ids=["gradient", "loss"])
@pytest.mark.parametrize("moments", ["shared", "separate"])
def test_a_skipped_update_leaves_parameters_and_moments_as_they_were(moments, figure, monkeypatch):
    """Only the schedule counts on: the step after it has the rate of its number."""
    states = three_steps(monkeypatch, moments, [(1, 0, figure), (1, 1, figure)])
    before, after, end = states[1:]
    assert int(after.step) == 2 and same(after.params, before.params) and not same(end.params, after.params)
    adam, schedule = optax.ScaleByAdamState, optax.ScaleByScheduleState
    assert same(parts(after, adam), parts(before, adam)) and not same(parts(end, adam), parts(after, adam))
    rate = learning_rate(OPTIONS)
    counts = [int(part.count) for part in parts(after, schedule)]
    assert counts == ([4] if moments == "shared" else [2, 2])
    moved = float(jnp.abs(end.params["kernel"] - after.params["kernel"])[0])
    assert moved == pytest.approx(2 * float(rate(2)), rel=0.1)


@pytest.mark.parametrize("moments", ["shared", "separate"])
@pytest.mark.parametrize("phase", [0, 1])
def test_only_the_phase_that_is_not_finite_is_skipped(phase, moments, monkeypatch):
    before, after = three_steps(monkeypatch, moments, [(1, phase, 0)])[1:3]
    assert not same(after.params, before.params)
    adam = zip(*(parts(state, optax.ScaleByAdamState) for state in (before, after)), strict=True)
    counts = [int(new.count) - int(old.count) for old, new in adam]
    assert counts == ([1] if moments == "shared" else [int(phase == 1), int(phase == 0)])
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after))


def test_the_pairs_of_all_micro_batches_are_named_in_their_order():
    """The loss of a pair, a metric of another, and a pair that only fills the batch."""
    judge, params = make_judge()
    batch = make_batch(pairs=4, valid=[True, True, True, False])
    thoughts = no_thoughts(batch, judge.end)

    def loss_fn(logps, thoughts):
        which, zero = thoughts.old_logp[:, 0, 0, 0], logps.answer.sum((1, 2))
        return jnp.where(which == 1, jnp.nan, zero), {"pair_nll": jnp.where(which >= 2, jnp.inf, zero)}

    marked = thoughts.replace(old_logp=thoughts.old_logp + jnp.arange(4.0)[:, None, None, None])
    _, measured = jax.jit(lambda p: gradient(judge, loss_fn, p, batch, marked, micro_batches=2))(params)
    assert measured["broken"].tolist() == [False, True, True, False]
    assert not np.isfinite(measured["loss"]) and not np.isfinite(measured["pair_nll"])


@jax.jit
def unreadable(batch):
    return batch.replace(prefix=batch.prefix.at[1, 0, 0].set(ABSENT))


def poison(steps, made=loop.make_programs):
    """`make_programs` whose update gets a token without an embedding in a pair of these steps."""

    def programs(run):
        whole = made(run)

        def train_step(state, batch, *rest):
            return whole.train_step(state, unreadable(batch) if int(state.step) + 1 in steps else batch, *rest)

        return whole.__class__(**vars(whole) | {"train_step": train_step})

    return programs


def poisoned(monkeypatch, steps):
    monkeypatch.setattr(loop, "make_programs", poison(steps))


VARIANTS = {
    "dwrl": ("smoke", [], ["score", "thought"]),
    "joint": ("smoke", ["--config.objective.updates=joint"], ["joint"]),
    "lora": ("smoke", ["--config.lora.rank=4", "--config.lora.alpha=8"], ["score", "thought"]),
    "bt": ("bt,smoke", [], None),
    "irpm": ("irpm,smoke", [], None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_goes_on_past_a_pair_that_is_not_finite(name, base, tmp_path, monkeypatch, capsys):
    variant, flags, phases = VARIANTS[name]
    poisoned(monkeypatch, [2])
    fit(tmp_path, f"--config.model.path={base}", *flags, "--config.log.thoughts_every=1", variant=variant)
    rows = lines(tmp_path / "metrics.jsonl")
    written = lines(tmp_path / "not_finite.jsonl")
    phases = phases or [written[0]["phase"]]
    assert [row["train/skipped_updates"] for row in rows] == [0, len(phases), 0, 0]
    assert [row["phase"] for row in written] == phases, "a line about the pair for each phase, and about no other pair"
    for row in written:
        assert row["step"] == 2 and f"loss_{row['phase']}" in row["figures"] and set(row["figures"].values()) == {"nan"}
        assert row["prompt"] and row["chosen"] != row["rejected"]
    assert "train/grad_norm_" + phases[0] in rows[2] and "train/grad_norm_" + phases[0] not in rows[1]
    said = [line for line in capsys.readouterr().out.splitlines() if "update is skipped" in line]
    assert len(said) == len(phases) and said[0].startswith("warning: step 2: the ")
    assert "updates were skipped" in (tmp_path / "report.html").read_text()


def params_at(workdir, step):
    _, shape = export.read_architecture(workdir)
    with checkpoint.open_manager(workdir, keep=4) as manager:
        return checkpoint.restore_params(manager, str(step), export.abstract_params(shape))


def test_a_run_stops_after_so_many_steps_in_a_row_over_all_its_starts(base, tmp_path, monkeypatch, capsys):
    """Step 2 is skipped and saved; the next start goes on with step 3, counts two in a row and stops there."""
    flags = [*tiny(), f"--config.model.path={base}", f"--workdir={tmp_path}", "--config.checkpoint.every=1"]
    flags.append("--config.checkpoint.keep=4")
    poisoned(monkeypatch, [2, 3])
    for _ in range(2):
        assert run_command("train", *flags, "--config.optim.most_skipped=2") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and said.startswith("error: step 3: the last 2 steps have figures that are not")
        assert "optim.learning_rate" in said and str(tmp_path / "not_finite.jsonl") in said
    numbers = [(row["step"], row["phase"]) for row in lines(tmp_path / "not_finite.jsonl")]
    assert numbers == [(2, "score"), (2, "thought"), (3, "score"), (3, "thought")], "lines of later steps were dropped"
    assert run_command("train", *flags, "--config.optim.most_skipped=3") == 0, "the setting may change in a run"
    assert [row["train/skipped_updates"] for row in lines(tmp_path / "metrics.jsonl")] == [0, 2, 2, 0]
    written = lines(tmp_path / "not_finite.jsonl")
    assert {row["pair"] for row in written if row["step"] == 2} == {written[0]["pair"]} and written[0]["prompt"]
    assert set(written[0]["figures"].values()) == {"nan"} and "loss_score" in written[0]["figures"]
    assert "were skipped" in (tmp_path / "report.html").read_text()
    at = [params_at(tmp_path, step) for step in (1, 2, 3, 4)]
    assert same(at[0], at[1]) and same(at[1], at[2]) and not same(at[2], at[3])


@pytest.mark.slow
def test_the_run_of_a_base_model_goes_on_too(tmp_path, monkeypatch):
    poisoned(monkeypatch, [2])
    fit(tmp_path)
    for workdir in (tmp_path / "base", tmp_path):
        assert {row["step"] for row in lines(workdir / "not_finite.jsonl")} == {2}
        skipped = [row["train/skipped_updates"] for row in lines(workdir / "metrics.jsonl")]
        assert skipped[1] > 0 and sum(skipped) == skipped[1]


@pytest.mark.slow
def test_two_processes_skip_what_one_skips(base, tmp_path):
    """Both go on, and name the same pairs."""
    flags = [*tiny(), f"--config.model.path={base}", "--config.eval.pairs=0"]
    module = "tests.training.test_not_finite"
    run_processes(module, *flags, f"--workdir={tmp_path / 'one'}", timeout=600)
    two = [*flags, f"--workdir={tmp_path / 'two'}", "--config.mesh.data=2"]
    run_processes(module, *two, processes=2, timeout=600)
    written, rows = (
        [lines(tmp_path / run / name) for run in ("one", "two")] for name in ("not_finite.jsonl", "metrics.jsonl")
    )
    assert [row["phase"] for row in written[0]] == ["score", "thought"]
    for expected, found in zip(*written, strict=True):  # the largest of numbers and NaN may differ between devices
        assert f"loss_{found['phase']}" in expected.pop("figures").keys() & found.pop("figures").keys()
        assert found == expected
    for expected, found in zip(*rows, strict=True):
        assert found["train/skipped_updates"] == expected["train/skipped_updates"] == (2 if found["step"] == 2 else 0)
    assert rows[1][-1]["train/pair_nll"] == pytest.approx(rows[0][-1]["train/pair_nll"], rel=1e-4)


if __name__ == "__main__":
    loop.make_programs = poison([2])
    train.main()
