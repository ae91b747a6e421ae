"""The part of results.json that speaks of held-out scores."""

import numpy as np

from dwrl_jax.evaluation.summary import summarise
from dwrl_jax.reporting.text import table

RIGHT, WRONG = np.log([[0.8] * 8, [0.1] * 8]), np.log([[0.1] * 8, [0.8] * 8])


def summary(pairwise=False):
    """Four pairs: the base is right on source b alone, the trained model on all."""
    scores = {"base": np.array([WRONG, RIGHT, WRONG, WRONG]), "trained": np.array([RIGHT] * 4)}
    references = {"ceiling": np.array([1.0, 1.0, 1.0, -1.0])}
    return summarise(scores, (8, 1), pairwise=pairwise, sources=list("abaa"), references=references)


def test_results_say_which_way_and_whose():
    results = summary()
    assert list(results["base"]) == ["k1", "k8"]
    assert (results["base"]["k8"]["accuracy"], results["trained"]["k8"]["accuracy"]) == (0.25, 1)
    assert results["gain"]["k1"]["accuracy"] == 0.75
    assert results["reference"]["no_thought"] is None and results["reference"]["ceiling"]["accuracy"] == 0.75
    by_source = {name: models["base"]["k8"] for name, models in results["sources"].items()}
    assert {name: (cell["accuracy"], cell["pairs"]) for name, cell in by_source.items()} == {"a": (0, 3), "b": (1, 1)}
    assert "flips" not in results["base"]["k1"] and summary(pairwise=True)["base"]["k1"]["flips"] == 1


def test_one_source_is_no_table_of_sources():
    results = summarise({"base": RIGHT[None], "trained": RIGHT[None]}, (1,), pairwise=False, sources=["a"])
    assert results["sources"] == {}


def test_the_table_in_a_terminal():
    lines = table(summary() | {"steps": 4, "seconds": 9.6}).splitlines()
    assert [line.split()[:5] for line in lines[1:5]] == [
        [*["base,", "k", "=", "1"], "25.0%"],
        [*["base,", "k", "=", "8"], "25.0%"],
        [*["trained,", "k", "=", "1"], "100.0%"],
        [*["trained,", "k", "=", "8"], "100.0%"],
    ]
    assert lines[5].startswith("noise ceiling") and "gain at k = 8: +75.0 points" in lines[7]
    assert lines[-1] == "4 steps, 10 s of training"
