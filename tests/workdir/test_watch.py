"""Faults of training are told by records that show them, once where they begin, and by none of a sound run."""

import numpy as np
import pytest

from dwrl_jax.workdir import watch
from dwrl_jax.workdir.records import series_of

PAIRS, STEPS = 16, 250


def records(steps=STEPS, seed=0, **courses):
    """Rows like those of a sound run of 250 steps on the built-in world; `courses` gives (from, to) of metrics.

    As in such runs, thoughts lose nearly all of their variety while accuracy rises: from .45 to .02 nats, and from 4.7
    to 7.8 of 8 effective thoughts.
    """
    sound = {
        "pair_accuracy": (0.73, 0.85),
        "effective_thoughts": (4.7, 7.8),
        "entropy": (0.45, 0.02),
        "cut_off": (0.0, 0.01),
        "answer_mass": (1.0, 0.98),
        "ties": (0.0, 0.0),
        "log_preference_score_chosen": (-1.3, -1.9),
        "log_preference_score_rejected": (-2.2, -4.0),
    }
    draws, rows = np.random.default_rng(seed), []
    for step in range(1, steps + 1):
        share = min(1.0, step / 60)
        row = {f"train/{name}": start + share * (end - start) for name, (start, end) in (sound | courses).items()}
        right = draws.binomial(PAIRS, row["train/pair_accuracy"])
        rows.append(row | {"step": step, "train/pair_accuracy": right / PAIRS})
    return rows


FAULTS = {  # the figures of runs that failed
    "uniform_thoughts": {
        "pair_accuracy": (0.55, 0.5),
        "effective_thoughts": (7.9, 7.9),
        "entropy": (0.7, 0.7),
    },
    "low_entropy": {"pair_accuracy": (0.5, 0.5), "entropy": (0.7, 0.1), "effective_thoughts": (4.7, 6.0)},
    "cut_off": {"cut_off": (0.0, 0.15)},
    "answer_mass": {"answer_mass": (0.98, 0.43)},
    "accuracy_falls": {"pair_accuracy": (0.85, 0.6), "entropy": (0.45, 0.3), "effective_thoughts": (5, 6)},
    "scores_sink": {"log_preference_score_chosen": (-1.3, -18), "log_preference_score_rejected": (-2.2, -27)},
    "scores_rise": {"log_preference_score_chosen": (-1.0, -0.1), "log_preference_score_rejected": (-1.5, -0.13)},
    "ties": {"ties": (0.0, 0.2)},
}


@pytest.mark.parametrize("name", FAULTS)
def test_records_of_a_fault_set_it_off_once(name):
    told = watch.begun(series_of(records(**FAULTS[name])), 8)
    assert [fault.name for fault in told] == [name]
    assert told[0].step >= watch.WINDOW and told[0].what and told[0].advice


def with_held_out(rows, accuracy):
    for row in rows:
        if row["step"] % 50 == 0:
            row["eval/accuracy"] = accuracy
    return rows


def test_a_judge_that_is_right_about_training_pairs_alone_is_told_once():
    """The figures of a run whose thoughts were lost while the style of training pairs told their labels."""
    told = watch.begun(series_of(with_held_out(records(), 0.57)), 8)
    assert [(fault.step, fault.name) for fault in told] == [(50, "held_out")]
    assert "0.57" in told[0].what and not watch.begun(series_of(with_held_out(records(), 0.75)), 8)


def test_sound_records_set_off_nothing():
    """Noise of small batches alone must not: 40 runs."""
    for seed in range(40):
        assert not watch.begun(series_of(records(seed=seed)), 8), seed


def test_the_noise_of_batches_of_one_pair_is_no_fall():
    """Windows of 25 such steps differ by more than the bound, and by less than five standard errors."""
    draws = np.random.default_rng(0)
    for _ in range(10):
        rows = records(pair_accuracy=(0.75, 0.75))
        for row in rows:
            row["train/pair_accuracy"] = float(draws.random() < 0.75)
        assert "accuracy_falls" not in {fault.name for fault in watch.begun(series_of(rows), 8)}


def test_a_judge_that_learns_nothing_yet_is_not_collapsed():
    """A value head at chance, whose rewards have no level, and a judge without thoughts."""
    rows = records(pair_accuracy=(0.5, 0.5), log_preference_score_chosen=(0.1, -9), ties=(0.0, 0.0))
    gone = {f"train/{name}" for name in ("effective_thoughts", "entropy", "cut_off", "answer_mass")}
    rows = [{key: value for key, value in row.items() if key not in gone} for row in rows]
    assert not watch.begun(series_of(rows), 1)


def test_a_fault_is_told_again_only_after_it_was_away():
    rows = records(steps=400)
    for row in rows:
        row["train/ties"] = 0.2 if row["step"] in (*range(50, 60), *range(90, 100), *range(250, 260)) else 0.0
    assert [fault.step for fault in watch.begun(series_of(rows), 8)] == [56, 256]


@pytest.mark.parametrize(("every", "told"), [(1, True), (3, False)])
def test_a_metric_that_most_steps_lack_has_no_mean(every, told):
    """As where most updates were skipped."""
    rows = records(ties=(0.2, 0.2))
    for row in rows:
        if row["step"] % every:
            del row["train/ties"]
    assert bool(watch.begun(series_of(rows), 8)) == told


def test_the_last_steps_tell_the_same_as_all_steps():
    """Else a run that goes on would tell other faults than an undisturbed one."""
    rows = records(steps=400)
    for row in rows:
        row["train/ties"] = 0.2 if row["step"] % 130 < 10 else 0.0
        row["train/cut_off"] = 0.2 * ((row["step"] > 100) + (row["step"] > 235))  # again before it was away for long
        if row["step"] % 7 == 0:
            del row["train/answer_mass"]  # as in a step whose update was skipped
    rows = with_held_out(rows, 0.5)
    whole, undisturbed, now = watch.begun(series_of(rows), 8), watch.Watch((), 8), []
    for end, row in enumerate(rows):
        told, number = undisturbed(row)
        now += told
        assert (told, number) == watch.Watch(rows[max(0, end - watch.KEPT) : end], 8)(row)
        assert number == watch._look(*watch._table(series_of(rows[: end + 1])), 8)[1]
    assert now == whole and len(whole) > 3


def test_no_records_have_no_faults():
    supervised = {"step": 1, "train/loss_sft": 1.0}
    assert watch.begun({}, 8) == [] and watch.begun(series_of([supervised]), 1) == []
    assert watch.Watch((), 1)(supervised) == ([], 0)
    assert watch.Watch([{"step": 1, "train/ties": None}], 1)(supervised) == ([], 0)
