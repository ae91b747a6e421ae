"""Evaluate a judge on public benchmarks: score, interval, calibration, bias and cost.

python -m dwrl_jax.evaluate --model=runs/tiny --benchmark=world --output=evaluated
python -m dwrl_jax.evaluate --compare evaluated other

The model is a run's workdir, an export, or any Hugging Face model, which is then asked as it comes. Several names with
as many places make one folder each: --benchmark=llmbar,hh --data=LLMBar,validation.jsonl.gz. The output has rows.jsonl,
summary.json and report.html. A stopped command goes on when it is given again. --compare puts finished outputs side by
side, the differences paired by row.
"""

import sys
from pathlib import Path

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.evaluation import benchmarks, run
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.load import load
from dwrl_jax.judge.votes import number_of
from dwrl_jax.reporting import evaluation_page, evaluation_text
from dwrl_jax.settings.commandline import Flag, command, folder, mesh_sizes, parse_flags, start

PAGE = "report.html"


FLAGS = {
    "model": Flag("runs/tiny", "a run's workdir, an exported or Hugging Face folder, or a hub id", required=True),
    "benchmark": Flag("llmbar,hh", f"names, joined by commas: {', '.join(benchmarks.names())}", required=True),
    "data": Flag("LLMBar,test.jsonl.gz", "for each benchmark a file, a folder or a hub name; else its usual hub name"),
    "output": Flag("evaluated", "the folder to write, or to go on with", required=True, read=folder),
    "votes": Flag("8", "thoughts per response, or auto for as many as each row needs", default="8"),
    "delta": Flag("0.01", "with --votes=auto, how often equal responses may be told apart", default=0.05, read=float),
    "split": Flag("test", "split of a hub name; else the benchmark's own"),
    "limit": Flag("100", "the first rows alone; 0 for all", default=0, read=int),
    "checkpoint": Flag("best", "of a workdir: last, best or the number of a step", default="last"),
    "judge": Flag("judge.json", "questions and read-out in the place of the folder's own judge.json", read=folder),
    "start": Flag("models/start", "the starting model's folder, for its thoughts, or for adapters of it"),
    "seed": Flag("1", "seed of the thoughts", default=0, read=int),
    "batch_size": Flag("32", "questions that are asked at a time", default=16, read=int),
    "mesh": Flag("data=2,tensor=4", "devices along the axes; else weights are spread over all", read=mesh_sizes),
}
COMPARE = {
    "compare": Flag(
        "evaluated other", "two or more outputs; the first is the reference", required=True, read=folder, many=True
    ),
    "output": Flag("compared", "a folder for one page about all of them", read=folder),
}


def places(names: list[str], data: str | None, output: Path) -> list[tuple[str, str, Path]]:
    """(benchmark, data, folder) of each name. UserError where the lists do not fit together."""
    given = data.split(",") if data else [""] * len(names)
    if len(given) != len(names):
        raise UserError(f"--data={data}: {len(given)} places for {len(names)} benchmarks; give one for each")
    if len(set(names)) < len(names):
        raise UserError(f"--benchmark={','.join(names)}: a name twice; give it another --output")
    for name in names:
        benchmarks.load(name)
    return [(name, place, output / name if len(names) > 1 else output) for name, place in zip(names, given)]


@command
def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if any(text.startswith("--compare") for text in arguments):
        compare(parse_flags(arguments, COMPARE, __doc__))
        return
    given = parse_flags(arguments, FLAGS, __doc__)
    wanted = places(given.benchmark.split(","), given.data, given.output)
    votes = number_of(given.votes, given.delta)
    start(given.output)
    card = read_card(given.judge) if given.judge else None
    loaded = load(given.model, checkpoint=given.checkpoint, card=card, start=given.start, mesh=given.mesh)
    for name, data, output in wanted:
        options = {"split": given.split or "", "limit": given.limit, "seed": given.seed}
        run.evaluate(loaded, name, data, output, votes, batch_size=given.batch_size, **options)
    if hosts.first():
        finished = [run.read(output) for _, _, output in wanted]
        say(evaluation_text.table(finished))
        say(evaluation_page.write_page(given.output / PAGE, [finished]))


def compare(given) -> None:
    """Print finished evaluations side by side, and write a page about them where an output is given."""
    if len(given.compare) < 2:
        raise UserError("--compare: give two or more outputs of evaluate")
    groups = [list(run.read_all(path)) for path in given.compare]
    if not list(evaluation_text.common(groups)):
        raise UserError(f"--compare: {', '.join(map(str, given.compare))} have no benchmark in common")
    say(evaluation_text.compared(groups))
    if given.output:
        given.output.mkdir(parents=True, exist_ok=True)
        say(evaluation_page.write_page(given.output / PAGE, groups))


if __name__ == "__main__":
    main()
