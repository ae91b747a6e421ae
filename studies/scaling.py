"""What a step costs on a growing number of chips: docs/scaling.md, counted from shapes, without any chip.

python -m studies.scaling [--keep NAME=tuned.json ...] [--docs=docs]

For each model, kind of chip and number of chips the choices of `python -m dwrl_jax.plan --tune` are counted, and the
one with the least bound on a step's time that fits is a line of the page. --keep takes files that `plan --tune --json`
wrote: their best choices, with compiled figures, stand beside the counted ones.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError, exit_cleanly
from dwrl_jax.planning import chips, counted, tune
from dwrl_jax.planning.model import model_of
from dwrl_jax.settings.commandline import parse_config
from studies import pages

ROOT = Path(__file__).parents[1]
PAGE, PICTURE, KEPT = "scaling.md", "scaling.png", "scaling.jsonl"
GIB = 2**30
MODELS = {
    "Qwen2.5-7B": ("configs/qwen7b.py", ""),
    "Llama-3.1-8B": ("configs/llama8b.py", ""),
    "Llama-3.3-70B": ("configs/llama8b.py", "meta-llama/Llama-3.3-70B-Instruct"),
}
# chips of one slice, whose links the figures of a chip describe: a slice of v5e or v6e ends at 256
SLICES = {"v5e": (64, 128, 256), "v6e": (64, 128, 256), "v5p": (64, 128, 256, 512, 1024)}
PAIRS = 64  # of a step that stays the same while chips are added
PER_CHIP = 1  # pairs of a step that grows with the chips


@dataclasses.dataclass(frozen=True)
class Point:
    """The best counted choice of a model on so many chips, or None where nothing fits. `least` are bytes of a chip."""

    model: str
    kind: str
    chips: int
    pairs: int
    tokens: int  # generated in a step, at full length
    least: float | None
    best: tune.Counted | None

    @property
    def per_pair(self) -> float:
        """Chip-seconds of a pair."""
        return self.best.seconds * self.chips / self.pairs


def points(model: str, grows: bool, say=lambda: None) -> list[Point]:
    """All slices for a model, with PAIRS pairs a step or, if it grows, PER_CHIP pairs for each chip."""
    path, hub_id = MODELS[model]
    config, _ = parse_config([f"--config={ROOT / path}"], {})
    config.model.path = hub_id or config.model.path
    found = []
    for kind, sizes in SLICES.items():
        shape, tokens, _ = model_of(config, kind)
        job = tune.job_of(config, shape, tokens)
        for size in sizes:
            pairs = PER_CHIP * size if grows else PAIRS
            made = 2 * pairs * job.group * job.thought
            step = dataclasses.replace(job, pairs=pairs, evaluated=pairs)
            found.append(Point(model, kind, size, pairs, made, *_best(chips.TPUS[kind], size, step)))
            say()
    return found


def _best(chip: chips.Chip, size: int, job: counted.Job) -> tuple[float | None, tune.Counted | None]:
    """The least bytes of a choice, and the fastest one that fits."""
    found = list(tune.count_all(chip, job, size))
    fitting = [each for each in found if each.used <= chip.memory]
    least = min((each.used for each in found), default=None)
    return least, min(fitting, key=lambda each: each.rank, default=None)


def tables(strong: list[Point], weak: list[Point], kept: list[dict]) -> str:
    """The generated part of the page."""
    lines = [f"![Seconds of a step and chip-seconds of a pair]({PICTURE})", ""]
    for model in MODELS:
        lines += [f"**{model}, {PAIRS} pairs a step**", ""]
        lines += pages.table(HEADER, _lines([each for each in strong if each.model == model]))
    sizes = max(SLICES.values(), key=len)
    lines += [f"**{PER_CHIP} pair a step for each chip: seconds of a step, and chip-seconds of a pair**", ""]
    lines += pages.table(["model, chip", *(f"{size:,} chips" for size in sizes)], _grown(weak, sizes))
    if kept:
        lines += ["**Compiled beside counted**", ""]
        lines += pages.table(COMPILED, [_compiled(each) for each in kept])
    return "\n".join(lines)


def _grown(weak: list[Point], sizes: tuple[int, ...]) -> list[list[str]]:
    by_place = {(each.model, each.kind, each.chips): each for each in weak}
    lines = []
    for model in MODELS:
        for kind in SLICES:
            found = [by_place.get((model, kind, size)) for size in sizes]
            cells = [each and (f"{each.best.seconds:.2f}, {each.per_pair:.1f}" if each.best else "-") for each in found]
            lines.append([f"{model}, {kind}", *(cell or "" for cell in cells)])
    return lines


HEADER = [
    "chips",
    "data x fsdp x tensor",
    "micro-batches, remat",
    "GiB",
    "thoughts, s",
    "update, s",
    "step, s",
    "efficiency %",
    "chip-s per pair",
    "tokens/s per chip",
]
FIGURES = ("flags", "counted_bytes", "bytes", "counted_seconds", "step_seconds")
COMPILED = ["config, topology", "choice", "GiB, counted", "GiB, compiled", "step, s, counted", "step, s, compiled"]


def _lines(rows: list[Point]) -> list[list[str]]:
    return [line for kind in SLICES for line in _kind_lines([each for each in rows if each.kind == kind])]


def _kind_lines(rows: list[Point]) -> list[list[str]]:
    first = next((each for each in rows if each.best), None)
    lines = []
    for each in rows:
        name = f"{each.chips} {each.kind}"
        if not each.best:
            why = f"needs {each.least / GIB:.1f} GiB" if each.least else "no mesh splits model and batch"
            lines.append([name, why, *[""] * (len(HEADER) - 2)])
            continue
        choice, phases = each.best.choice, each.best.phases
        lines.append(
            [
                name,
                " x ".join(map(str, choice.mesh)),
                f"{choice.micro_batches}, {choice.remat}",
                f"{each.best.used / GIB:.1f}",
                *(f"{phases[part]['seconds']:.2f} ({phases[part]['bound']})" for part in ("thoughts", "update")),
                f"{each.best.seconds:.2f}",
                f"{100 * first.per_pair / each.per_pair:.0f}",
                f"{each.per_pair:.1f}",
                f"{each.tokens / each.best.seconds / each.chips:.0f}",
            ]
        )
    return lines


def _compiled(kept: dict) -> list[str]:
    return [
        kept["name"],
        f"`{kept['flags']}`",
        *(f"{kept[key] / GIB:.1f}" for key in ("counted_bytes", "bytes")),
        *(f"{kept[key]:.2f}" for key in ("counted_seconds", "step_seconds")),
    ]


def picture(points: list[Point]) -> Figure:
    """Seconds of a step of PAIRS pairs, and chip-seconds of one of them, by chips."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    styles = dict(zip(MODELS, ("-", "--", ":")))
    colours = dict(zip(SLICES, ("#0072b2", "#d55e00", "#009e73")))
    sizes_of_all = max(SLICES.values(), key=len)
    for axes, name in ((left, "seconds of a step"), (right, "chip-seconds of a pair")):
        for model, style in styles.items():
            for kind, colour in colours.items():
                mine = [each for each in points if (each.model, each.kind) == (model, kind) and each.best]
                values = [each.best.seconds if axes is left else each.per_pair for each in mine]
                label = f"{model}, {kind}" if axes is left and mine else None
                sizes = [each.chips for each in mine]
                axes.plot(sizes, values, style, color=colour, marker="o", markersize=3.5, linewidth=1.3, label=label)
        axes.set(xlabel="chips", ylabel=f"least {name}", xscale="log", yscale="log")
        axes.minorticks_off()
        for axis, ticks in ((axes.xaxis, sizes_of_all), (axes.yaxis, (0.2, 0.5, 1, 2, 5, 10, 20, 40))):
            low, high = axis.get_view_interval()
            ticks = [tick for tick in ticks if low <= tick <= high]
            axis.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.22, linewidth=0.6)
    figure.suptitle(f"{PAIRS} pairs a step", fontsize=10)
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    return figure


def keep(docs: Path, given: list[str]) -> list[dict]:
    """The kept compiled choices, after those of the given NAME=FILE are added. UserError for another file."""
    path = docs / KEPT
    kept = list(files.read_lines(path)) if path.exists() else []
    for name, _, file in (pair.partition("=") for pair in given):
        tuned = files.read_json(Path(file))
        if not tuned.get("best"):
            raise UserError(f"--keep={name}={file}: no file of `plan --tune --json` with a choice that fits")
        mine = {"name": f"{name}, {tuned['topology']}", **{key: tuned["best"][key] for key in FIGURES}}
        kept = [other for other in kept if other["name"] != mine["name"]] + [mine]
    if given:
        files.write_lines(path, kept)
    return kept


@exit_cleanly
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", nargs="+", default=[], help="NAME=FILE, files of `plan --tune --json`")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    given = parser.parse_args(arguments)
    kept = keep(given.docs, given.keep)
    total = 2 * len(MODELS) * sum(map(len, SLICES.values()))
    with tqdm(total=total, desc="counting", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:
        strong, weak = ([p for model in MODELS for p in points(model, grows, bar.update)] for grows in (False, True))
    page = given.docs / PAGE
    files.write_text(page, pages.splice(page.read_text(encoding="utf-8"), tables(strong, weak, kept)))
    picture(strong).savefig(given.docs / PICTURE, dpi=110)


if __name__ == "__main__":
    main()
