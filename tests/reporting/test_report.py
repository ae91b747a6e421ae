"""The report says what the run's files say, escapes what the model wrote, and loads nothing."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest

from dwrl_jax import report
from dwrl_jax.reporting.page import examples, headline, write_report
from dwrl_jax.workdir import records

VOID = {"meta", "br", "link", "img", "hr", "input"}
ATTACK = "<script>alert(1)</script> & so \ud83d on"


class Page(html.parser.HTMLParser):
    """Collects ids, loads and text; fails on a tag that closes another one."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.loads, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.seen(tag, dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self.seen(tag, dict(attrs))

    def seen(self, tag, attrs):
        assert tag not in ("script", "link", "iframe", "img", "object"), tag
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.loads += [v for k, v in attrs.items() if k in ("src", "href", "xlink:href", "data", "srcset")]
        self.loads += re.findall(r"url\(([^)]*)\)", f"{attrs.get('style')} {attrs.get('clip-path')}")

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}, {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def cell(accuracy, nll=0.6, ties=0.01):
    interval = [accuracy - 0.03, accuracy + 0.03]
    return {"accuracy": accuracy, "interval": interval, "nll": nll, "ties": ties, "pairs": 1768}


def results(gain=0.152, interval=(0.121, 0.183)):
    return {
        "base": {"k1": cell(0.613, 0.683), "k8": cell(0.641, 0.655)},
        "trained": {"k1": cell(0.744, 0.521), "k8": cell(0.641 + gain, 0.447)},
        "gain": {
            "k1": {"accuracy": 0.131, "interval": [0.09, 0.17]},
            "k8": {"accuracy": gain, "interval": interval},
        },
        "reference": {"no_thought": 0.5912, "ceiling": {"accuracy": 0.861, "interval": [0.84, 0.88]}},
        "steps": 200,
        "seconds": 412.3,
        "judge": "verdict",
        "config": {
            "base": {"sampler": {"group_size": 9}},
            "objective": {"name": "dwrl"},
            "model": {"dim": 64},
            "sampler": {"group_size": 4},
        },
        "data": {"train": "3,590 pairs kept, 8 too long"},
    }


def metrics(steps=200):
    draw = np.random.default_rng(0).normal
    for step in range(steps):
        done = step / steps
        row = {
            "train/pair_accuracy": 0.6 + 0.2 * done + 0.05 * draw(),
            "train/pair_nll": 0.69 - 0.2 * done + 0.03 * draw(),
            "train/log_preference_score_chosen": -0.7 + 0.3 * done + 0.02 * draw(),
            "train/log_preference_score_rejected": -0.7 - 1.1 * done + 0.05 * draw(),
            "train/misalignment_weight": 0.5 - 0.25 * done + 0.02 * draw(),
            "train/effective_thoughts": 3.6 - 1.2 * done + 0.1 * draw(),
            "train/thought_length": 40 + 30 * done + 2 * draw(),
            "train/cut_off": 0.02 + 0.1 * done,
            "train/entropy": 1.6 - 0.7 * done + 0.03 * draw(),
            "train/answer_mass": 0.9 + 0.09 * min(1, 4 * done),
            "train/ratio_max": 1.3 + abs(0.2 * draw()),
            "train/clip_share": 0.01 + 0.005 * abs(draw()),
            "train/grad_norm_score": 1.0 + abs(0.4 * draw()),
            "train/grad_norm_thought": 0.3 + abs(0.1 * draw()),
            "train/logp_gap_mean": 1e-4 * (1 + abs(draw())),
            "train/logp_gap_max": 1e-3 * (1 + abs(draw())),
            "sample/tokens_per_second": 21000 + 300 * draw(),
            "train/tokens_per_second": 48000 + 500 * draw(),
            "data/padding": 0.14 + 0.02 * draw(),
        }
        if step % 50 == 0:
            row |= {"eval/accuracy": 0.63 + 0.15 * done, "eval/nll": 0.66 - 0.2 * done}
        yield {"step": step} | row


def thoughts(step, pairs=6, group=4):
    draw = np.random.default_rng(step).uniform
    for pair in range(pairs):
        for side in ("chosen", "rejected"):
            scores = draw(0.1, 0.9, group)
            for sample, score in enumerate(scores):
                weight = score / scores.sum()
                yield {
                    "step": step,
                    "pair": pair,
                    "side": side,
                    "sample": sample,
                    "prompt": [{"role": "user", "content": f"How many legs has spider {pair}? Say why."}],
                    "response": f"It has {8 if side == 'chosen' else 6} legs, as all of its kind do.",
                    "thought": f"{ATTACK} at step {step}, sample {sample}: let me count the legs. " * 3,
                    "cut_off": sample == 3,
                    "score": score,
                    "thought_weight": weight,
                    "dual_weight": (1 if side == "chosen" else -1) * 0.3 * weight,
                    "misalignment_weight": 0.3,
                    "split": "eval",
                } | ({"other_end": "<|eom|>"} if sample == 2 else {})


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def workdir(tmp_path):
    path = tmp_path / "tiny-run"
    path.mkdir()
    (path / "results.json").write_text(json.dumps(results()))
    write_jsonl(path / "metrics.jsonl", metrics())
    write_jsonl(path / "thoughts.jsonl", [row for step in (0, 100, 200) for row in thoughts(step)])
    return path


def test_page_states_the_results_and_loads_nothing(workdir):
    path = write_report(workdir)
    raw = path.read_text(encoding="utf-8")
    page = Page(raw)
    assert path == workdir / "report.html" and len(raw) < 1_500_000
    assert len(list(workdir.iterdir())) == 4
    sentence = "rose from 64.1 % to 79.3 % (+15.2 points, 95 % interval 12.1 to 18.3) with 8 votes"
    for fact in (
        sentence, "61.3 %", "0.447", "1,768", "59.1 %", "86.1 %", "84.0 to 88.0", "6.9 min",
        "3,590 pairs kept, 8 too long", "judge verdict", "sampler.group_size", "noise ceiling",
    ):  # fmt: skip
        assert fact in page.text, fact
    assert len(page.ids) == len(set(page.ids)) > 50
    assert all(load.startswith("#") and load[1:] in page.ids for load in page.loads), page.loads
    assert not re.search(r"https?://(?!www\.w3\.org/(2000/svg|1999/xlink)\")", raw)
    assert raw.count("<svg") == 15
    assert "To look at" not in page.text


def test_thoughts_are_escaped_and_show_before_and_after(workdir):
    (workdir / "metrics.jsonl").unlink()
    raw = write_report(workdir).read_text(encoding="utf-8")
    assert "<script" not in raw and "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so ? on" in raw
    assert raw.count("<b>Before</b>, step 0") == raw.count("<b>After</b>, step 200") == 4
    assert "step 100," not in raw and "cut off</span>" in raw
    assert "stopped by &lt;|eom|&gt;</span>" in raw


def test_null_references_and_absent_logs_are_left_out(workdir):
    bare = results() | {"reference": {"no_thought": 0.59, "ceiling": None}}
    (workdir / "results.json").write_text(json.dumps(bare))
    (workdir / "metrics.jsonl").unlink()
    (workdir / "thoughts.jsonl").unlink()
    page = Page(write_report(workdir).read_text(encoding="utf-8"))
    assert "ceiling" not in page.text and "best no-thought reader" in page.text
    assert "How training went" not in page.text and "What it thinks" not in page.text


@pytest.mark.parametrize(
    "gain, interval, words",
    [
        (
            0.01,
            (-0.012, 0.032),
            "No clear change: held-out pair accuracy is 65.1 % after training and 64.1 % before",
        ),
        (0.01, (-0.012, 0.032), "(+1.0 points, 95 % interval −1.2 to 3.2) may be chance"),
        (-0.05, (-0.08, -0.02), "fell from 64.1 % to 59.1 % (−5.0 points, 95 % interval −8.0 to −2.0)"),
    ],
)
def test_headline_claims_no_more_than_the_interval(gain, interval, words):
    assert words in headline(results(gain, interval))


def test_warnings_name_what_is_wrong(workdir):
    bad = {
        "train/answer_mass": 0.8,
        "train/cut_off": 0.4,
        "train/effective_thoughts": 3.95,
        "train/logp_gap_mean": 0.02,
    }
    write_jsonl(workdir / "metrics.jsonl", [row | bad | {"train/grad_norm": float("nan")} for row in metrics(30)])
    tied = results()
    tied["trained"]["k1"]["ties"] = 0.07
    (workdir / "results.json").write_text(json.dumps(tied))
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    for words in (
        "hold 0.80",
        "40 % of the thoughts",
        "3.95 of 4",
        "0.020 nats",
        "7.0 % of the held-out",
        "grad_norm",
    ):
        assert words in text, words


def test_faults_while_the_run_went_and_skipped_updates_are_told(workdir):
    rows = [row | {"train/skipped_updates": 2.0 * (row["step"] == 9), "train/cut_off": 0.0} for row in metrics(60)]
    for row in rows[30:]:
        row["train/cut_off"] = 0.15
    write_jsonl(workdir / "metrics.jsonl", rows)
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    assert "2 updates were skipped" in text and "not_finite.jsonl" in text
    assert text.count("more and more thoughts are cut off") == 1 and "From step 46:" in text
    write_jsonl(workdir / "metrics.jsonl", metrics(60))
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    assert "were skipped" not in text and "From step" not in text


def test_long_logs_stay_small(workdir):
    write_jsonl(workdir / "metrics.jsonl", metrics(3000))
    assert write_report(workdir).stat().st_size < 1_000_000


def test_rewards_are_shown_as_they_are_and_compared_by_the_logistic_function(workdir):
    def rows(step):
        for row in thoughts(step, pairs=2, group=1):
            reward = 800.0 if row["side"] == "chosen" else 800.0 - np.log(3)
            yield {key: value for key, value in row.items() if key != "score"} | {"reward": reward}

    write_jsonl(workdir / "thoughts.jsonl", rows(200))
    (workdir / "metrics.jsonl").unlink()
    text = Page(write_report(workdir).read_text(encoding="utf-8")).text
    assert "with probability 75.0 %" in text and "rewards +800.000 and +798.901" in text
    assert "reward +800.000" in text and "inf" not in text


@pytest.mark.parametrize("scores, probability", [((1e300, 0.5), 1.0), ((np.inf, 0.5), 1.0), ((np.inf, np.inf), 0.5)])
def test_scores_of_older_runs_may_be_infinite(workdir, scores, probability):
    """They were the exponential of a reward."""
    both = dict(zip(records.SIDES, scores))
    write_jsonl(workdir / "thoughts.jsonl", [row | {"score": both[row["side"]]} for row in thoughts(200, 1, 1)])
    ((moment,),) = (example["moments"] for example in examples(records.read_thoughts(workdir), pairwise=False))
    assert moment["probability"] == probability


def test_an_objective_that_is_gone_costs_only_its_own_pictures(workdir):
    gone = results()
    gone["config"]["objective"]["name"] = "gone"
    (workdir / "results.json").write_text(json.dumps(gone))
    page = write_report(workdir).read_text(encoding="utf-8")
    assert "Pair accuracy" in page and "Misalignment weight" not in page


def test_a_workdir_without_results_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit) as left:
        report.main()
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == ""
    assert err.count("\n") == 1 and "results.json does not exist" in err


def test_the_command_prints_the_path(workdir, monkeypatch, capsys):
    (workdir / "metrics.jsonl").unlink()
    monkeypatch.setattr(sys, "argv", ["report", f"--workdir={workdir}"])
    report.main()
    assert capsys.readouterr().out == f"{workdir / 'report.html'}\n"
