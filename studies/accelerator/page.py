"""The tables of docs/accelerator.md from the figures in docs/accelerator.jsonl.

python -m studies.accelerator.page
"""

import json
from pathlib import Path

from studies.accelerator.work import Work, median
from studies.pages import splice, table

DOCS = Path(__file__).parents[2] / "docs"
PEAK_FLOPS, PEAK_BYTES = 989e12, 4.8e12  # an H200's data sheet: dense bfloat16 products, memory


def generated(rows: list[dict]) -> str:
    measured = [row for row in rows if row["work"]["kind"] == "ceilings"]
    flops, moved = (max(row[key] for row in measured) for key in ("flops_per_second", "bytes_per_second"))
    lines = [
        f"Ceilings measured in the same runs: {flops / 1e12:.0f} TFLOP/s (product of 8,192 x 8,192 in bfloat16), "
        f"{moved / 1e12:.2f} TB/s (copy of 4 GiB). By the data sheet: {PEAK_FLOPS / 1e12:.0f} TFLOP/s, "
        f"{PEAK_BYTES / 1e12:.1f} TB/s.",
        "",
    ]
    header = ["decoding", "step, ms", "tokens/s", "bandwidth of sheet", "of the copy", "peak memory", "commit"]
    lines += table(header, [decoding(row, moved) for row in rows if row["work"]["kind"] == "decode"])
    header = ["two updates", "seconds", "FLOP/s of sheet (MFU)", "of the product", "peak memory", "commit"]
    lines += table(header, [updating(row, flops) for row in rows if row["work"]["kind"] == "update"])
    lines += table(["PyTorch, the same work", "seconds", "ours", "ratio"], beside(rows))
    return "\n".join(lines)


def sizes(row: dict) -> str:
    """The name of a work, and its sizes: responses x thoughts, lengths."""
    work = Work(**row["work"])
    return f"{row['name']} ({work.prompts} x {work.group}, {work.plen} + {work.new} tokens)"


def decoding(row: dict, moved: float) -> list[str]:
    rate = row["needed_bytes_per_step"] / row["step_s"]
    shares = [f"{rate / ceiling:.0%}" for ceiling in (PEAK_BYTES, moved)]
    return [sizes(row), f"{1e3 * row['step_s']:.2f}", f"{row['tokens_per_second']:,.0f}", *shares, *_last(row)]


def updating(row: dict, flops: float) -> list[str]:
    if "failed" in row:
        return [sizes(row), row["failed"], "-", "-", "-", f"`{row['commit']}`"]
    shares = [f"{row['flops_per_second'] / ceiling:.1%}" for ceiling in (PEAK_FLOPS, flops)]
    return [sizes(row), f"{median(row['update_s']):.3f}", *shares, *_last(row)]


def _last(row: dict) -> list[str]:
    return [f"{row['peak_bytes'] / 2**30:.1f} GiB", f"`{row['commit']}`"]


def beside(rows: list[dict]) -> list[list[str]]:
    """Each work of PyTorch beside ours of the same sizes, the latest."""
    found = []
    for row in rows:
        kind = row["work"]["kind"]
        if not kind.startswith("peer"):
            continue
        key = "sample_s" if kind == "peer_generate" else "update_s"
        same = [r for r in rows if key in r and r is not row and _alike(r["work"], row["work"])]
        ours, theirs = median(same[-1][key]), median(row[key])
        found.append([sizes(row), f"{theirs:.2f}", f"{ours:.2f}", f"{theirs / ours:.1f}"])
    return found


def _alike(ours: dict, theirs: dict) -> bool:
    same = all(ours.get(key) == theirs.get(key) for key in ("shape", "prompts", "layers"))
    return same and not ours["kind"].startswith("peer") and "attention" not in ours and "flags" not in ours


def main() -> None:
    text = (DOCS / "accelerator.jsonl").read_text(encoding="utf-8")
    page = DOCS / "accelerator.md"
    rows = [json.loads(line) for line in text.splitlines()]
    page.write_text(splice(page.read_text(encoding="utf-8"), generated(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
