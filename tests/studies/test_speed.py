"""The study of speed: its command in tiny, the straight line that times are held against, the page it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from studies import pages
from studies.speed import experts, page, run

REPO = Path(__file__).parents[2]
FILES = [f"speed.{ending}" for ending in ("json", "md", "png")]


def figures(seconds=lambda count: 0.5 + 0.001 * count):
    """What the program would have measured where every work takes `seconds(positions)`."""
    base = {"prompts": 4, **run.BASE}
    points = []
    for value in run.VALUES["group"]:
        sizes = base | {"group": value}
        times = {work: [seconds(page.positions(sizes))] * 3 for work in page.WORKS}
        points.append({"sizes": sizes, "compile_s": 1.0, "seconds": times})
    host = {"device": "cpu", "cpu": "a CPU", "cores": 2, "jax": "0", "commit": "abc", "date": "2026-01-01"}
    about = {"command": "python studies/speed/run.py", "shape": "small", "dtype": "float32", "repeats": 3}
    return about | {"base": base, "sweeps": {"group": run.VALUES["group"]}, "machine": host, "points": points}


@pytest.fixture
def without_a_picture(monkeypatch):
    """Drawing takes most of a page's time, and pages here are looked at for their text."""
    monkeypatch.setattr(page, "draw", lambda data, path: path.touch())


def test_the_command_measures_every_point_and_draws_it(tmp_path, capsys):
    """Two sweeps share a point, which is measured once."""
    sizes = ["--prompts=2", "--group=2", "--plen=8", "--new=4", "--groups=2", "--plens=8", "--sweeps=group,plen"]
    run.main(["--shape=tiny", *sizes, "--repeats=2", f"--output={tmp_path}"])
    assert "it/s" not in capsys.readouterr().err  # no progress bar where nobody looks
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    data = json.loads((tmp_path / "speed.json").read_text())
    assert [list(row["sizes"].values()) for row in data["points"]] == [[2, 2, 8, 4]]
    for row in data["points"]:
        assert row["compile_s"] > 0 and {len(seconds) for seconds in row["seconds"].values()} == {2}
        sample, update, step = (np.array(row["seconds"][work]) for work in page.WORKS)
        assert (sample > 0).all() and (update > 0).all()
        np.testing.assert_allclose(step, sample + update, rtol=1e-6)
    assert data["machine"]["cores"] > 0 and data["command"].startswith("python studies/speed/run.py --shape=tiny")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "speed.md").read_text()
    assert "![" in text and "(speed.png)" in text and data["machine"]["commit"] in text


def test_points_on_a_line_do_not_deviate_and_one_that_is_off_shows():
    x = np.array([100, 200, 400, 800, 1600])
    on_the_line = 0.2 + 0.003 * x
    intercept, slope, deviation = page.fit(x, on_the_line)
    np.testing.assert_allclose([intercept, slope], [0.2, 0.003], rtol=1e-9)
    assert deviation < 1e-9
    assert page.fit(x, on_the_line * [1, 1, 1.3, 1, 1])[2] > page.BAR
    assert page.fit(x, on_the_line * [1, 1, 1.03, 1, 1])[2] < page.BAR
    assert page.fit(x[:2], on_the_line[:2])[2] is None


def test_a_sweep_that_is_no_line_is_marked():
    assert "above the bar" not in page.report(figures(), "picture.png")
    assert "above the bar" in page.report(figures(lambda count: count**2), "picture.png")


def test_the_page_in_docs_is_that_of_its_figures():
    """But for where its lines are broken."""
    data = json.loads((REPO / "docs" / "speed.json").read_text())
    written = pages.between((REPO / "docs" / "speed.md").read_text())
    assert written.split() == page.report(data, "speed.png").split()


def test_figures_are_drawn_again_and_hand_written_parts_stay(tmp_path, without_a_picture):
    raw, file = tmp_path / "raw.json", tmp_path / "out" / "speed.md"
    raw.write_text(json.dumps(figures()))
    again = [f"--from-json={raw}", f"--output={file.parent}"]
    run.main(again)
    assert sorted(path.name for path in file.parent.iterdir()) == FILES
    assert json.loads((file.parent / "speed.json").read_text()) == figures()
    file.write_text("By hand, before.\n" + file.read_text() + "By hand, after.\n")
    slower = figures(lambda count: count)
    raw.write_text(json.dumps(slower))
    run.main(again)
    text = file.read_text()
    assert text.startswith("By hand, before.\n# Speed\n") and text.endswith(f"{pages.END}\nBy hand, after.\n")
    assert text.count(pages.BEGIN) == text.count(pages.END) == 1 and "17,664" in text and "1,000" in text
    run.main(again)
    assert file.read_text() == text
    file.write_text("Only words.\n")
    run.main(again)
    assert file.read_text().startswith(f"Only words.\n\n{pages.BEGIN}\n")


@pytest.mark.parametrize(
    "flag",
    [
        "--prompts=3",
        "--groups=2,x",
        "--plen=0",
        "--sweeps=depth",
        "--plen=40000",
        "--from-json=none.json",
        "--shape=no",
    ],
)
def test_a_bad_argument_is_one_message_and_exit_code_2(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        run.main([flag])
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error:" in message and flag.partition("=")[0] in message


def test_experts():
    """The study's two programs compute the same, in small; it says so itself."""
    assert set(experts.measure(tokens=16, width=8, size=4, rounds=1)) == {"forward", "gradient"}
