"""Curves: each metric of each objective is drawn, with its spikes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dwrl_jax import objectives
from dwrl_jax.core.types import Logps, ThoughtBatch, Verdicts
from dwrl_jax.reporting.curves import NOT_DRAWN, common, curves, thinned

B, G, T = 3, 4, 5
LOOP = (  # what the training loop adds to an objective's metrics
    "data/padding", "train/cut_off", "train/other_end", "sample/tokens", "sample/tokens_per_second",
    "train/tokens_per_second", "train/padding", "time/step_seconds", "eval/accuracy", "eval/nll", "eval/ties",
    "eval/brier", "eval/ece",
    "eval/flips", "eval/position_bias",
)  # fmt: skip


def arguments():
    """Log-probabilities and thoughts that any objective can learn from."""
    tokens, groups = jnp.full((B, 2, G, T), -1.0), jnp.full((B, 2, G), -0.5)
    verdict = Verdicts(groups.astype(int), groups, groups < 0, groups < 0, groups, place=groups.astype(int))
    thoughts = ThoughtBatch(tokens.astype(int), jnp.full((B, 2, G), T), tokens, ref_logp=tokens, verdict=verdict)
    return Logps(tokens, groups, jnp.exp(groups), -tokens, verdict=groups), thoughts


def metrics_of(objective):
    """The names of all metrics that a run of an objective may write, whatever its hyper-parameters."""
    fields = {field.name for field in dataclasses.fields(objective.hyper)}
    options = [{}, {"kl": 0.1}, {"updates": "joint"}, {"policy_updates": 2}]
    for option in options:
        if option.keys() <= fields:
            for phase, loss in objective.phases(objective.hyper(**option)).items():
                metrics = jax.eval_shape(loss, *arguments())[1]
                yield from (f"train/{name}" for name in (*metrics, f"loss_{phase}", f"grad_norm_{phase}"))
    yield from LOOP


@pytest.mark.parametrize("name", objectives.names())
def test_every_metric_of_an_objective_is_drawn(name):
    objective = objectives.load(name)
    metrics = set(metrics_of(objective))
    panels = [*common(metrics), *objective.panels]
    drawn = {metric for panel in panels for metric in panel.series}
    assert metrics - drawn == set(NOT_DRAWN)
    assert {metric for panel in objective.panels for metric in panel.series} <= metrics, "a metric that no run writes"
    titles = [panel.title for panel in panels]
    assert len(titles) == len(set(titles)), "two pictures of one title"


def test_phases_share_a_picture_and_config_keys_are_lines():
    steps = np.arange(3)
    series = {f"train/grad_norm_{phase}": (steps, np.ones(3)) for phase in ("score", "thought", "policy_3")}
    series["train/effective_thoughts"] = (steps, np.full(3, 2.0))
    drawn = curves(series, objectives.load("dwrl").panels, {"sampler.group_size": 4})
    (gradient,), (effective,) = drawn["Optimisation"], drawn["The two weights"]
    assert [label for label, _ in gradient["legend"]] == ["score", "thought", "policy 3"]
    assert len({color for _, color in gradient["legend"]}) == 3
    assert "all weights equal" in effective["svg"]
    assert "all weights equal" not in curves(series, objectives.load("dwrl").panels, {})["The two weights"][0]["svg"]


def test_thinning_keeps_spikes():
    values = np.zeros(10_000)
    values[1234], values[7777] = 50, -50
    steps, kept = thinned(np.arange(10_000), values)
    assert len(kept) <= 300 and {1234, 7777} <= set(steps)
