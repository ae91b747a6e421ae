"""The page of growth: the fastest counted choice that fits on each number of chips, and what keeps others out."""

import dataclasses

import pytest

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.planning import chips, tune
from studies import scaling


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(scaling, "MODELS", {name: scaling.MODELS[name] for name in ("Qwen2.5-7B", "Llama-3.3-70B")})
    monkeypatch.setattr(scaling, "SLICES", {"v5e": (64, 128, 61)})


def tuned(path, best):
    figures = {"flags": "--config.mesh.tensor=4", "counted_bytes": 2**30, "bytes": 3 * 2**30}
    figures |= {"counted_seconds": 5.5, "step_seconds": 6.5}
    files.write_json(path, {"topology": "v5e:8x8", "best": figures if best else None})
    return f"7b={path}"


def test_the_page_has_the_best_choice_of_each_size_and_why_others_have_none(few, tmp_path):
    (tmp_path / scaling.PAGE).write_text("By hand.\n")
    scaling.main([f"--docs={tmp_path}", "--keep", tuned(tmp_path / "a.json", True)])
    lines = (tmp_path / scaling.PAGE).read_text().splitlines()
    seven, seventy = ([each.split(" | ") for each in lines if each.startswith(f"| {n} v5e")] for n in (61, 64))
    assert lines[0] == "By hand." and seventy[1][1].startswith("needs "), "70B"
    assert seven[0][1] == "no mesh splits model and batch"
    (small,) = [line.split(" | ") for line in lines if line.startswith("| 128 v5e") and "dots" in line]
    assert small[1:3] == ["2 x 16 x 4", "4, dots"] and int(small[7]) < 100
    assert f"{128 * float(small[6]) / scaling.PAIRS:.0f}" == f"{float(small[8]):.0f}"
    assert "| 7b, v5e:8x8 | `--config.mesh.tensor=4` | 1.0 | 3.0 | 5.50 | 6.50 |" in lines
    assert (tmp_path / scaling.PICTURE).stat().st_size > 10_000
    first = (tmp_path / scaling.KEPT).read_text()
    assert scaling.keep(tmp_path, [tuned(tmp_path / "a.json", True)]) and (tmp_path / scaling.KEPT).read_text() == first


def test_a_step_that_grows_with_the_chips_has_the_same_work_on_each(few):
    points = scaling.points("Qwen2.5-7B", grows=True)
    assert [point.pairs for point in points] == [64, 128, 61]
    assert points[0].best.phases["update"]["flops"] == pytest.approx(points[1].best.phases["update"]["flops"])
    assert points[0].per_pair == pytest.approx(points[0].best.seconds)


def test_the_best_is_the_fastest_of_those_that_fit():
    chip = chips.TPUS["v5e"]
    config, _ = scaling.parse_config([f"--config={scaling.ROOT / 'configs/qwen7b.py'}"], {})
    shape, tokens, _ = scaling.model_of(config, "v5e")
    job = tune.job_of(config, shape, tokens)
    least, best = scaling._best(chip, 64, job)
    _, smaller = scaling._best(dataclasses.replace(chip, memory=10 * 2**30), 64, job)
    assert least <= smaller.used <= 10 * 2**30 < best.used <= chip.memory
    assert best.seconds < smaller.seconds


def test_a_file_without_a_choice_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file of `plan --tune --json` with a choice"):
        scaling.keep(tmp_path, [tuned(tmp_path / "a.json", False)])
