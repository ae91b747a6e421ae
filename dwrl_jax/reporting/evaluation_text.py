"""Evaluations as lines of text, for a terminal."""

from collections.abc import Sequence

from dwrl_jax.evaluation.benchmarks.parts.result import difference
from dwrl_jax.evaluation.run import Evaluation, result_of

WIDTH = 34


def table(evaluations: Sequence[Evaluation]) -> str:
    """A block of lines for each evaluation, with the score without a thought beside it, its subsets, and its errors."""
    return "\n\n".join("\n".join(block(each)) for each in evaluations)


def block(evaluation: Evaluation) -> list[str]:
    """The lines of one evaluation."""
    summary, pairs, plain = evaluation.summary, evaluation.summary["pairs"], evaluation.summary["no_thought"]
    title = f"{evaluation.benchmark.title}, {votes_of(evaluation)}"
    lines = [f"{title:{WIDTH}} {'score':>7} {'95 % interval':>15} {'NLL':>7} {'after T':>8} {'ECE':>6} {'ties':>6}"]
    lines.append(_line("with thoughts" if plain else "score", summary, pairs))
    if plain:
        lines.append(_line("without a thought", plain, plain["pairs"]))
        lines.append(f"{'thoughts add':{WIDTH}} {added(plain['thoughts add'])}")
    lines += [f"  {name:{WIDTH - 2}} {percent(value)}" for name, value in summary["subsets"].items()]
    lines += [f"  {name:{WIDTH - 2}} {percent(value)}" for name, value in summary["averages"].items()]
    if pairs:
        confident = f"{percent(pairs['confident half']).strip()} on the confident half"
        lines.append(f"{confident}, same verdict in {percent(pairs['stability']).strip()} of single votes")
    lines.append(cost(summary))
    count = sum(summary["errors"].values())
    if count:
        reasons = ", ".join(f"{reason} {n}" for reason, n in summary["errors"].items())
        lines.append(
            f"{count} rows without a score ({reasons}); see their column error in {evaluation.folder}/rows.jsonl"
        )
    return lines


def votes_of(evaluation: Evaluation) -> str:
    """The number of votes in words."""
    if evaluation.about["card"]["thoughts"] == "none":
        return "no thoughts"
    count = evaluation.summary["votes"]
    return f"{count:.1f} votes" if isinstance(evaluation.about["votes"], dict) else f"{count:.0f} votes"


def cost(summary: dict) -> str:
    """Rows, thoughts and time in a line."""
    spent = summary.get("cost", {})
    parts = [f"{summary['n']} rows, {summary['seconds']:.0f} s, {summary['rows per second']:.2f} rows/s"]
    if spent:
        parts.append(f"{spent['thoughts per pair']:.1f} thoughts and {spent['tokens per pair']:.0f} tokens a pair")
    return ", ".join([*parts, f"padding {100 * summary['padding']:.0f} % of prefix positions"])


def percent(share: float) -> str:
    return f"{100 * share:6.1f}%"


def between(interval: Sequence[float], signed: bool = False) -> str:
    style = "+.1f" if signed else ".1f"
    return f"{100 * interval[0]:{style}} to {100 * interval[1]:{style}}"


def added(change: dict) -> str:
    return f"{100 * change['overall']:+6.1f}  {between(change['interval'], signed=True):>15}"


def _line(name: str, numbers: dict, pairs: dict | None) -> str:
    start = f"{name:{WIDTH}} {percent(numbers['overall'])} {between(numbers['interval']):>15}"
    if not pairs:
        return start
    after = pairs["tempered"]["nll"]
    return f"{start} {pairs['nll']:7.3f} {after:8.3f} {pairs['ece']:6.3f} {100 * pairs['ties']:5.1f}%"


def compared(groups: Sequence[Sequence[Evaluation]]) -> str:
    """The judges of several folders on the benchmarks that they have in common; the first is the reference.

    Differences are paired by row. UserError comes from the caller if there is no common benchmark.
    """
    lines = []
    for name, first, others in common(groups):
        lines.append(
            f"{name:{WIDTH}} {'score':>7} {'95 % interval':>15} {'less the first':>15} {'95 % interval':>15}   same"
        )
        reference = result_of(first)
        lines.append(_line(str(first.folder), first.summary, None))
        for other in others:
            change, same = difference(result_of(other), reference), same_verdicts(first, other)
            told = f"{100 * change['overall']:+15.1f} {between(change['interval'], signed=True):>15}"
            lines.append(f"{_line(str(other.folder), other.summary, None)} {told} {percent(same)[1:]}")
        lines.append("")
    lines.append("less the first: paired by row, in points; same: rows with the same best response")
    return "\n".join(lines)


def common(groups: Sequence[Sequence[Evaluation]]):
    """(title, evaluation of the first folder, those of the others) for each benchmark that all folders have."""
    by_name = [{each.about["benchmark"]: each for each in group} for group in groups]
    for name, first in by_name[0].items():
        if all(name in other for other in by_name[1:]):
            yield first.benchmark.title, first, [other[name] for other in by_name[1:]]


def same_verdicts(first: Evaluation, other: Evaluation) -> float:
    """Share of the common rows whose best response is the same."""
    best = {row["id"]: row["rank"].index(1) for row in first.scored}
    same = [best[row["id"]] == row["rank"].index(1) for row in other.scored if row["id"] in best]
    return sum(same) / len(same) if same else 0.0
