"""A figure that is not finite: its update is skipped and counted, its pairs are written down, and the run goes on."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dwrl_jax.core.types import TrainState
from dwrl_jax.objectives import dwrl
from dwrl_jax.training import loop
from dwrl_jax.training.optimizer import make_optimizer
from dwrl_jax.training.settings import OptimSettings
from dwrl_jax.training.step import make_train_step
from tests.judge.test_judge import draw
from tests.runs import fit, lines, run_command, tiny
from tests.small import make_batch, make_judge

OPTIONS = OptimSettings(steps=24, learning_rate=1e-3, warmup=4)
ABSENT = 10**6  # an id without an embedding: XLA gives NaN for it
STEPS = [f"--config.optim.{key}" for key in ("schedule=constant", "warmup=0")]


def nan_in(name):
    """DWRL's phases, of which `name` has an infinite gradient while its loss is finite, or a NaN loss of a pair."""
    phases = dwrl.phases(dwrl.Hyper())
    loss_fn = phases[name]

    def broken(logps, thoughts):
        losses, metrics = loss_fn(logps, thoughts)
        return losses.at[1].set(jnp.nan), metrics

    return phases | {name: broken}


@pytest.fixture(scope="module")
def small():
    judge, params = make_judge()
    batch = make_batch(pairs=2)
    thoughts, _, _ = draw(judge, params, batch)
    return judge, params, batch, thoughts


def one_step(small, phases, moments="shared", micro_batches=1):
    """The state after a step, that before it, and the metrics."""
    judge, params, batch, thoughts = small
    optimizer = make_optimizer(OptimSettings(**vars(OPTIONS) | {"moments": moments}), phases=len(phases))
    warm = jax.tree.map(lambda x: jnp.full_like(x, 0.01) if x.ndim else x, optimizer.init(params))
    before = TrainState(jnp.int32(3), params, warm)
    step = make_train_step(judge, optimizer, phases, micro_batches)
    after, metrics = step(jax.tree.map(jnp.copy, before), batch, thoughts)
    return before, after, metrics


def moments_of(state):
    return jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState))


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_a_skipped_update_leaves_parameters_and_moments_as_they_were(small):
    """Only the schedules count on, and the other phase is that of a step in which nothing was wrong."""
    losses = {name: nan_in(name)[name] for name in ("score", "thought")}
    before, after, metrics = one_step(small, losses)
    assert int(after.step) == 4 and same(after.params, before.params)
    adam, schedule = after.opt_state[1][0], after.opt_state[1][2]
    assert same(adam, before.opt_state[1][0]) and int(schedule.count) == 2
    for done, broken in metrics["skipped"].values():
        assert bool(done) and broken.tolist() == [False, True]


@pytest.mark.parametrize(("micro_batches", "moments"), [(1, "separate"), (2, "shared")])
def test_only_the_phase_that_is_not_finite_is_skipped(small, micro_batches, moments):
    before, after, metrics = one_step(small, nan_in("thought"), moments, micro_batches)
    _, alone, _ = one_step(small, {"score": dwrl.phases(dwrl.Hyper())["score"]}, moments, micro_batches)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, alone.params)
    assert not same(after.params, before.params)
    assert [bool(done) for done, _ in metrics["skipped"].values()] == [False, True]
    assert metrics["skipped"]["thought"][1].tolist() == [False, True], "the pairs of all micro-batches in their order"


def test_a_gradient_that_is_not_finite_is_skipped_though_its_loss_is_finite(small):
    def loss(logps, thoughts):
        zero = (logps.answer - jax.lax.stop_gradient(logps.answer)).sum((1, 2))
        return jnp.sqrt(zero), {"pair_nll": zero}  # 0, with an infinite slope

    before, after, metrics = one_step(small, {"joint": loss})
    assert np.isfinite(metrics["loss_joint"]) and not np.isfinite(metrics["grad_norm_joint"])
    assert same(after.params, before.params) and bool(metrics["skipped"]["joint"][0])
    assert not metrics["skipped"]["joint"][1].any()


def poisoned(monkeypatch, steps, pair=1):
    """In these steps the update gets a token without an embedding in a pair."""
    made = loop.make_programs

    def programs(run):
        whole = made(run)

        def train_step(state, batch, *rest):
            if int(state.step) + 1 in steps:
                prefix = np.array(batch.prefix)
                prefix[pair, 0, 0] = ABSENT
                batch = batch.replace(prefix=prefix)
            return whole.train_step(state, batch, *rest)

        return whole.__class__(**vars(whole) | {"train_step": train_step})

    monkeypatch.setattr(loop, "make_programs", programs)


VARIANTS = {
    "dwrl": ("smoke", [], ["score", "thought"]),
    "joint": ("smoke", ["--config.objective.updates=joint"], ["joint"]),
    "lora": ("smoke", ["--config.lora.rank=4", "--config.lora.alpha=8"], ["score", "thought"]),
    "bt": ("bt,smoke", [], None),
    "irpm": ("irpm,smoke", [], None),
}


@pytest.mark.parametrize(
    "name", ["dwrl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("joint", "lora", "bt", "irpm"))]
)
def test_a_run_goes_on_past_a_pair_that_is_not_finite(name, base, tmp_path, monkeypatch, capsys):
    variant, flags, phases = VARIANTS[name]
    poisoned(monkeypatch, [2])
    flags = [f"--config.model.path={base}", *flags, "--config.checkpoint.every=1", "--config.checkpoint.keep=4"]
    fit(tmp_path, *flags, "--config.log.thoughts_every=1", variant=variant)
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
    if name != "dwrl":
        return
    steps = [shutil.copytree(tmp_path / "checkpoints" / str(step), tmp_path / f"kept{step}") for step in (1, 2, 3)]
    assert len({(step / "params").exists() for step in steps}) == 1
    at = {}
    for step in (1, 2, 3):
        at[step] = params_at(tmp_path, step)
    jax.tree.map(np.testing.assert_array_equal, at[1], at[2])
    assert not same(at[2], at[3])


def params_at(workdir, step):
    from dwrl_jax.workdir import checkpoint
    from dwrl_jax.workdir import model as export

    _, shape = export.read_architecture(workdir)
    with checkpoint.open_manager(workdir, keep=4) as manager:
        return checkpoint.restore_params(manager, str(step), export.abstract_params(shape))


def test_a_run_stops_after_so_many_steps_in_a_row_even_if_it_was_stopped_between_them(
    base, tmp_path, monkeypatch, capsys
):
    """Step 2 is skipped and saved; the next start goes on with step 3, counts two in a row and stops there."""
    flags = [*tiny(), f"--config.model.path={base}", f"--workdir={tmp_path}", "--config.checkpoint.every=1"]
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
