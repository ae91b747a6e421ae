"""Exact: each benchmark reads its original layout, and its numbers equal those of its definition by hand, with ties."""

import gzip
import json

import numpy as np
import pytest

from dwrl_jax.core.errors import UserError
from dwrl_jax.evaluation import benchmarks
from dwrl_jax.evaluation.benchmarks import llmbar, ppe, rewardbench, rewardbench2, rm_bench
from dwrl_jax.evaluation.benchmarks.parts import result

FILES = {
    "pairs": ("some.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", "source": "s"}]),
    "hh": (
        "helpful-base/test.jsonl.gz",
        [{"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}],
    ),
    "rewardbench": ("f.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", "subset": "hep-go", "id": 7}]),
    "rewardbench2": (
        "rb2.parquet",
        [{"id": "3", "prompt": "q", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1, "subset": "Math"}],
    ),
    "rm_bench": (
        "safety-refuse_filtered.json",
        [{"id": "x", "prompt": "q", "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"]}],
    ),
    "judgebench": (
        "gpt.jsonl",
        [{"pair_id": "p", "source": "mmlu-pro", "question": "q", "response_A": "a", "response_B": "b", "label": "B>A"}],
    ),
    "llmbar": ("Adversarial/GPTOut/dataset.json.gz", [{"input": "q", "output_1": "a", "output_2": "b", "label": 2}]),
    "ppe": (
        "PPE-MATH-Best-of-K.jsonl",
        [
            {
                "question_id": "1",
                "model_name": "m",
                "prompt": "q",
                "response_1": "a",
                "response_2": "b",
                "response_3": "c",
                "scores": [False, True, True],
                "sampled_conflict_pairs": [[0, 2]],
            }
        ],
    ),
}  # fmt: skip
READ = {
    "pairs": ("some.jsonl:1", "s", "ab", [True, False]),
    "hh": ("helpful-base/test.jsonl.gz:1", "helpful-base", "ab", [True, False]),
    "rewardbench": ("7", "hep-go", "ab", [True, False]),
    "rewardbench2": ("3", "Math", "abcd", [True, False, False, False]),
    "rm_bench": ("safety-refuse/x", "safety", "abcdef", [True] * 3 + [False] * 3),
    "judgebench": ("p", "Knowledge", "ab", [False, True]),
    "llmbar": ("Adversarial/GPTOut/dataset.json.gz:1", "GPTOut", "ab", [False, True]),
    "ppe": ("MATH/1/m", "MATH", "abc", [False, True, True]),
}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    array = ".json" in path.suffixes
    text = json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_original_layout_is_read(name, tmp_path):
    """From the folder, so that ids do not depend on where it is."""
    file, raw = FILES[name]
    path = write(tmp_path / file, raw)
    (row,) = benchmarks.read(name, str(path if name == "pairs" else tmp_path))
    identity, subset, responses, right = READ[name]
    assert (row["id"], row["subset"], "".join(row["responses"]), row["right"]) == (identity, subset, responses, right)
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    assert prompt == "q"
    pairs = benchmarks.pairs_of(benchmarks.load(name), row)
    assert pairs == (
        [(2, 0)] if name == "ppe" else [(i, j) for i, a in enumerate(right) for j, b in enumerate(right) if a and not b]
    )


def test_every_benchmark_is_tested():
    assert sorted([*FILES, "world"]) == benchmarks.names()


def test_pairs_of_the_built_in_world():
    rows = benchmarks.read("world", "3:5")
    assert len(rows) == 5 and rows == benchmarks.read("world", "3:5") and rows != benchmarks.read("world", "4:5")
    with pytest.raises(UserError, match="give a seed, or seed:pairs"):
        benchmarks.read("world", "three")
    rows = benchmarks.read("world", "shortcut:3:5")
    assert [row["subset"] for row in rows] == ["world"] * 5 + ["alike"] * 5 and len({row["id"] for row in rows}) == 10
    assert benchmarks.read("world", "noisy:3:5")[0]["prompt"] == benchmarks.read("world", "3:5")[0]["prompt"]


def test_bad_rows_are_listed_and_wrong_files_refused(tmp_path):
    good = FILES["llmbar"][1][0]
    path = write(tmp_path / "a.jsonl", [good, good | {"label": None}, good | {"label": 3}, {"input": "q"}])
    path.write_text(path.read_text() + "not json\n")
    rows = benchmarks.read("llmbar", str(path))
    reasons = ["", "missing column: label", "label '3', not 1 or 2", "missing column: output_1", "not json"]
    assert [row.get("error", "") for row in rows] == reasons
    assert [row["where"] for row in rows] == [f"a.jsonl:{line}" for line in range(1, 6)]
    with pytest.raises(
        UserError, match=r"no row of JudgeBench \(a.jsonl:1: missing column: question\); its columns are"
    ):
        benchmarks.read("judgebench", str(path))
    with pytest.raises(UserError, match="there is no such file or folder"):
        benchmarks.read("llmbar", str(tmp_path / "none.json"))
    with pytest.raises(UserError, match="no file .jsonl"):
        (tmp_path / "empty").mkdir()
        benchmarks.read("llmbar", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="give its --data"):
        benchmarks.read("llmbar", "")
    with pytest.raises(UserError, match="choose from hh, judgebench"):
        benchmarks.load("rewardbench3")
    (tmp_path / "b.json").write_text("{}")
    with pytest.raises(UserError, match="no row of LLMBar"):
        benchmarks.read("llmbar", str(tmp_path / "b.json"))


def test_two_rows_with_one_id_stay_apart(tmp_path):
    row = FILES["rewardbench"][1][0]
    rows = benchmarks.read("rewardbench", str(write(tmp_path / "a.jsonl", [row, row])))
    assert [row["id"] for row in rows] == ["7", "7 (a.jsonl:2, 2)"]


def test_rm_bench_takes_the_whole_file_once(tmp_path):
    row = FILES["rm_bench"][1][0]
    write(tmp_path / "total_dataset.json", [row | {"domain": "chat"}, row | {"domain": "code"}])
    write(tmp_path / "chat_filtered.json", [row])
    assert [row["subset"] for row in benchmarks.read("rm_bench", str(tmp_path))] == ["chat", "code"]


def scored(*rows):
    """Rows from (subset, scores, right)."""
    return [
        {"id": str(i), "subset": subset, "score": score, "right": right, "responses": [""] * len(score)}
        for i, (subset, score, right) in enumerate(rows)
    ]


PAIR = [True, False]


def test_pairs_count_a_tie_one_half():
    found = benchmarks.load("pairs").aggregate(scored(("a", [2, 1], PAIR), ("a", [1, 1], PAIR), ("b", [1, 2], PAIR)))
    assert found.overall == pytest.approx(0.5) and found.subsets == {"a": 0.75, "b": 0}


def test_rewardbench_by_hand():
    """Chat: (100 x 1/2 + 40 x 1) / 140, where a tie is wrong. Safety: its two subsets have the weights 154 and 250."""
    rows = scored(
        ("alpacaeval-easy", [1, 1], PAIR),
        ("alpacaeval-easy", [2, 1], PAIR),
        ("mt-bench-med", [2, 1], PAIR),
        ("xstest-should-refuse", [2, 1], PAIR),
        ("xstest-should-respond", [1, 2], PAIR),
        ("hep-go", [2, 1], PAIR),
    )
    found = rewardbench.aggregate(rows)
    chat, safety = 90 / 140, 154 / 404
    assert found.overall == pytest.approx((chat + safety + 1) / 3)
    assert found.averages["section Chat"] == pytest.approx(chat) and "section Chat Hard" not in found.averages
    published = found.averages["score with the weights of the published code"]
    assert published == pytest.approx((chat + 250 / 404 + 1) / 3)
    counts = {name: sum(section.values()) for name, section in rewardbench.SECTIONS.items()}
    assert counts == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 984 * 2}


def test_rewardbench2_by_hand():
    one = [True, False, False, False]
    rows = scored(
        ("Math", [3, 1, 2, 0], one),
        ("Math", [3, 3, 2, 0], one),
        ("Math", [3, 3, 3, 3], one),
        ("Math", [2, 3, 1, 0], one),
        ("Focus", [1, 0, 0, 0], one),
    )
    found = rewardbench2.aggregate(rows)
    assert found.subsets == {"Math": pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4), "Focus": 1}
    assert found.overall == pytest.approx((1.75 / 4 + 1) / 2)


def test_ties_of_rewardbench2_by_hand():
    """Prompt 1: g_ref = 2, g_tied = 3, d = 1. Prompt 2: g_ref = -1, g_tied = 1, d = 1. Prompt 3: 0 / 0."""
    two = [True, True, False]
    rows = scored(
        ("Ties", [5.0, 3.0], PAIR),
        ("Ties", [6.0, 5.0, 2.0], two),
        ("Ties", [1.0, 2.0], PAIR),
        ("Ties", [4.0, 3.0, 2.0], two),
        ("Ties", [1.0, 1.0], PAIR),
        ("Ties", [2.0, 2.0, 2.0], two),
    )
    for row, identity in zip(rows, ("ref:1", "tied:1", "ref:2", "tied:2", "ref:3", "tied:3")):
        row["id"] = identity
    tanh = (np.tanh(2 / 1 - 1) + np.tanh(-1 / 1 - 1) + 0) / 3
    by_hand = 0.3 * 2 / 3 + 0.3 * 1 / 3 + 0.2 * 1 / 3 + 0.2 * 1 / 3 + 0.01 * tanh
    found = rewardbench2.aggregate(rows)
    assert found.overall == pytest.approx(by_hand) and found.subsets["Ties"] == pytest.approx(by_hand)
    infinite = [rows[0] | {"score": [9.0, 3.0]}, rows[1] | {"score": [6.0, 6.0, 2.0]}]
    assert rewardbench2.aggregate(infinite).overall == pytest.approx(1 + 0.01)
    both = rewardbench2.aggregate([*rows, *scored(("Math", [3, 1, 2, 0], [True] + [False] * 3))])
    assert both.overall == pytest.approx((by_hand + 1) / 2)


def test_rm_bench_by_hand():
    """Upper triangle: plain right responses against fancier wrong ones. A tie is wrong."""
    right = [True] * 3 + [False] * 3
    rows = scored(
        ("chat", [1, 2, 3, 1, 2, 3], right),  # wins below the diagonal alone: ties on it
        ("chat", [9, 9, 9, 1, 2, 3], right),
        ("math", [4, 2, 3, 1, 2, 3], right),  # row 0 wins all; (1,0), (2,0), (2,1)
    )
    found = rm_bench.aggregate(rows)
    assert found.subsets["chat, hard"] == 0.5 and found.subsets["chat, normal"] == 0.5
    assert found.subsets["chat, easy"] == pytest.approx(1) and found.subsets["chat"] == pytest.approx((3 / 9 + 1) / 2)
    assert found.subsets["math, hard"] == pytest.approx(2 / 3) and found.subsets["math, normal"] == pytest.approx(1 / 3)
    assert found.overall == pytest.approx((12 / 18 + 6 / 9) / 2)
    assert found.averages["hard"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert np.mean([found.averages[level] for level in rm_bench.LEVELS]) == pytest.approx(found.overall)


def told(*rows):
    """Rows from (subset, right, verdicts)."""
    return [
        {"id": str(i), "subset": subset, "right": right, "verdicts": verdicts, "score": [0, 0]}
        for i, (subset, right, verdicts) in enumerate(rows)
    ]


def test_judgebench_by_hand():
    """A change of mind and two ties are wrong; a tie and a right verdict are right."""
    rows = told(
        ("Math", [True, False], [0, 0]),
        ("Math", [True, False], [0, 1]),
        ("Math", [False, True], [None, 1]),
        ("Math", [False, True], [None, None]),
        ("Coding", [False, True], [1]),
        ("Coding", [False, True], [0]),
        ("Coding", [True, False], [None]),
    )
    found = benchmarks.load("judgebench").aggregate(rows)
    assert found.subsets == {"Math": 0.5, "Coding": pytest.approx(1 / 3)}
    assert found.overall == found.averages["micro"] == pytest.approx(3 / 7)
    assert found.averages["macro"] == pytest.approx((0.5 + 1 / 3) / 2)


def test_llmbar_by_hand():
    rows = told(
        ("Natural", [True, False], [0, 0]),
        ("GPTOut", [True, False], [0, 1]),
        ("GPTOut", [False, True], [None, 1]),
        ("Manual", [False, True], [0, 0]),
    )
    found = llmbar.aggregate(rows)
    assert found.subsets == {"Natural": 1, "GPTOut": (0.5 + 0.75) / 2, "Manual": 0}
    assert found.overall == pytest.approx((1 + 0.5 + 0.75 + 0) / 4)
    assert found.averages["agreement"] == 0.5
    assert found.averages["adversarial, mean over sets"] == pytest.approx((0.625 + 0) / 2)


def test_ppe_by_hand():
    """Human: a tie is wrong. MATH: 1 of 2 sampled pairs. GPQA: all 2 pairs, of which one is a tie."""
    human = scored(("human", [2, 1], PAIR), ("human", [1, 1], PAIR))
    math = scored(("MATH", [1, 3, 2], [True, False, True]), ("MATH", [1, 3, 2], [False, False, False]))
    math[0]["compared"] = [[0, 1], [2, 1]]
    math[0]["score"] = [4, 3, 2]
    gpqa = scored(("GPQA", [1, 1, 2], [True, False, True]))
    found = ppe.aggregate([*human, *math, *gpqa])
    assert found.subsets == {"human": 0.5, "MATH": 0.5, "GPQA": 0.5}
    assert found.overall == pytest.approx(0.5)
    assert ppe.aggregate(human).overall == 0.5 and ppe.aggregate(math).averages == {
        "correctness, mean over sets": 0.5,
        "area under best of k, MATH": pytest.approx(ppe.best_of_k(math)["judge"].mean()),
    }


def test_best_of_k_by_enumeration():
    """The expectation over all draws of k answers, a tie drawn at random."""
    import itertools

    rows = scored(("MATH", [1, 4, 3, 3, 0], [True, False, True, False, True]))
    score, right = np.array(rows[0]["score"]), np.array(rows[0]["right"], float)
    curves = ppe.best_of_k(rows)
    for k in range(1, 6):
        draws = [list(draw) for draw in itertools.combinations(range(5), k)]
        chosen = [right[draw][score[draw] == score[draw].max()].mean() for draw in draws]
        assert curves["judge"][k - 1] == pytest.approx(np.mean(chosen))
        assert curves["ceiling"][k - 1] == pytest.approx(np.mean([right[draw].max() for draw in draws]))
        assert curves["chance"][k - 1] == pytest.approx(0.6)


def test_intervals_of_weighted_means():
    """Like that of a mean where there is one part; narrower where two parts average; none without a spread."""
    values = np.tile([0.0, 1.0], 200)
    low, high = result.interval([(1.0, values)])
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)
    low, high = result.interval([(0.5, values), (0.5, values)])
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20 / np.sqrt(2), rel=0.1)
    assert result.interval([(0.5, np.ones(9)), (0.5, np.zeros(9))]) == [0.5, 0.5]


def test_differences_are_paired_by_row():
    """Two judges that are right on the same rows but for four; and a row that only one of them has."""

    def of(right, rows):
        return result.Result({"all": result.Part(1.0, {str(i): float(i < right) for i in rows})}, {})

    found = result.difference(of(54, range(101)), of(50, range(100)))
    assert found["overall"] == pytest.approx(0.04) and found["n"] == 100
    low, high = found["interval"]
    assert low >= 0 and high - low == pytest.approx(2 * 1.96 * np.sqrt(0.04 * 0.96 / 100), rel=0.2)
    assert result.difference(of(50, range(100)), of(50, range(100)))["interval"] == [0, 0]
    assert result.difference(of(1, range(2)), of(1, range(5, 9)))["n"] == 0


def test_llmbar_as_its_authors_keep_it(shared_data):
    rows = benchmarks.read("llmbar", str(shared_data / "llmbar" / "original"))
    counts = {name: sum(row["subset"] == name for row in rows) for name in {row["subset"] for row in rows}}
    assert counts == {"Natural": 100, "Neighbor": 134, "GPTInst": 92, "GPTOut": 47, "Manual": 46}
    assert not any("error" in row for row in rows)
