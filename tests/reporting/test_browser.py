"""All pages in a real browser, with hostile text in every place: it is shown, and none of it runs."""

import json
from collections import Counter

import pytest

from dwrl_jax.data.examples import FitReport
from dwrl_jax.data.pairs import Reading, Repeats, Skipped
from dwrl_jax.data.survey import Loss, Shown, Survey
from dwrl_jax.reporting import evaluation_page, notebook, survey
from dwrl_jax.reporting.page import write_report
from tests import browser as browsing
from tests.browser import FRAGMENTS, HOSTILE, HOSTILE_NAME, RUN
from tests.reporting.test_evaluation_page import row, write
from tests.reporting.test_report import results, thoughts, write_jsonl

TURNS = [{"role": HOSTILE, "content": HOSTILE}]


def run(folder):
    """The files of a run whose config, sources, metrics and thoughts are hostile."""
    folder.mkdir()
    given = results()
    given["config"]["model"] = {"path": HOSTILE, HOSTILE: 1}
    given |= {"data": {"train": HOSTILE}, "sources": {HOSTILE: {"trained": given["trained"]}}, HOSTILE: HOSTILE}
    (folder / "results.json").write_text(json.dumps(given))
    write_jsonl(folder / "metrics.jsonl", [{"step": i, f"train/loss_{HOSTILE}": 0.5, HOSTILE: 1.0} for i in range(9)])
    said = {"prompt": TURNS, "response": HOSTILE, "thought": HOSTILE, "other_end": HOSTILE, "cut_off": False}
    write_jsonl(folder / "thoughts.jsonl", [each | said for step in (0, 200) for each in thoughts(step, 2, 3)])
    return folder


def run_report(folder):
    return write_report(run(folder))


def hostile_row(index, wins, prompt):
    return row(index, wins) | {
        "id": f"{index}{HOSTILE}",
        "subset": HOSTILE,
        "prompt": prompt,
        "responses": [HOSTILE, HOSTILE],
        "thoughts": [[HOSTILE] * 4] * 2,
    }


def evaluations(folder):
    """The page of two judges beside each other."""
    rows = [hostile_row(i, i % 2, prompt) for i, prompt in enumerate([HOSTILE, TURNS] * 2)]
    bad = {"id": HOSTILE, "where": HOSTILE, "error": f"{HOSTILE}: 9"}
    groups = [[write(folder / name / HOSTILE_NAME, [], more=[*rows, bad])] for name in ("a", "b")]
    return evaluation_page.write_page(folder / "report.html", groups)


def look(folder):
    """The page about a file of pairs."""
    folder.mkdir()
    seen = Survey(
        name=f"{folder}/{HOSTILE_NAME}",
        split=HOSTILE,
        buckets=(64,),
        reading=Reading(count=2, formats=Counter({HOSTILE: 1}), unused=Counter({HOSTILE: 1})),
        pairs=1,
        repeats=Repeats(0, 0),
        sources=Counter({HOSTILE: 1}),
        margins=0,
        longer_chosen=1.0,
        losses=[Loss(HOSTILE, 1, [(HOSTILE, HOSTILE)])],
        sample=1,
        fit=FitReport(1, 0, 0, Skipped(), [9]),
        shown=[Shown(HOSTILE, 9, [(HOSTILE, False), (HOSTILE, True)], HOSTILE)],
    )
    survey.write_page(seen, HOSTILE, folder / "look.html")
    return folder / "look.html"


def in_a_notebook(folder):
    """Thoughts in a frame of a notebook."""
    run(folder)
    frame = notebook.thoughts_page(folder, [0])._repr_html_()
    (folder / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><body>{frame}", encoding="utf-8")
    return folder / "notebook.html"


@pytest.mark.parametrize("page", [run_report, evaluations, look])
def test_hostile_text_is_shown_and_not_run(page, browser, tmp_path):
    path = page(tmp_path / HOSTILE_NAME)
    browsing.visit(browser, path.as_uri())
    browsing.assert_no_text_ran(browser, path.as_uri())
    assert browser.execute_script("return document.querySelectorAll('[http-equiv=Content-Security-Policy]').length")
    shown = browser.execute_script("return document.body.textContent")
    for fragment in FRAGMENTS[:-1]:
        assert fragment in shown and shown.count(fragment) > 3, fragment
    assert HOSTILE_NAME in shown


def test_thoughts_in_a_notebook_run_nothing(browser, tmp_path):
    path = in_a_notebook(tmp_path / "run")
    browsing.visit(browser, path.as_uri())
    browser.switch_to.frame(0)
    assert FRAGMENTS[0] in browser.page_source.replace("&lt;", "<").replace("&gt;", ">")
    browser.switch_to.default_content()
    browsing.assert_no_text_ran(browser, path.as_uri(), kinds="script, img, a")
    assert notebook.Page("<script>parent.hacked=1</script>")._repr_html_().count(" sandbox ") == 1


def test_even_text_that_was_not_escaped_would_not_run(browser, tmp_path):
    """The policy that all pages have refuses what a template would have let through."""
    path = look(tmp_path / "x")
    inside = f"<main><script>{RUN}</script><img src=x onerror={RUN}><link rel=stylesheet href=https://example.invalid/>"
    path.write_text(path.read_text(encoding="utf-8").replace("<main>", inside), encoding="utf-8")
    browsing.visit(browser, path.as_uri())
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert browser.execute_script("return typeof window.hacked") == "undefined"
    assert len(said) >= 3 and all("Content Security Policy" in message for message in said), said
