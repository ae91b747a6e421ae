"""A look at a file of pairs (`data.survey`), as text for a terminal and as a page."""

from pathlib import Path

import numpy as np

from dwrl_jax.core import files
from dwrl_jax.data.pairs import no_usable_row
from dwrl_jax.data.survey import Loss, Survey
from dwrl_jax.dialogue import CHANGED, CONTROL
from dwrl_jax.reporting.page import render

CLIP = 110  # characters of a row
LONG = 400  # characters of a text between two control tokens

HINTS = dict.fromkeys((CONTROL, CHANGED), " (dialogue.control=escape keeps it as plain text)")


def text(seen: Survey) -> str:
    """The survey in lines."""
    lines = [f"{label:<16}{value}" for label, value in facts(seen)]
    lines += _loss_lines(f"left out while reading, {len(seen.reading.rows):,}", seen.losses)
    lines += _loss_lines(f"left out of the {seen.sample:,} pairs that were tokenised", seen.misfits)
    if seen.fit:
        lines += ["", "tokens of the longer side, with all turns and the question"]
        lines += [f"  {label:<29}{value}" for label, value in lengths(seen)]
    for shown in seen.shown:
        said = "".join(f"⟦{piece}⟧" if control else _clip(piece, LONG) for piece, control in shown.pieces)
        lines += ["", f"--- {shown.where}, {shown.tokens} tokens, with the chosen response; ⟦control tokens⟧", said]
        lines += ["--- the rejected response", _clip(shown.rejected, LONG)]
    return "\n".join(lines)


def facts(seen: Survey) -> list[tuple[str, str]]:
    """(label, value) of what the whole file says."""
    reading, total = seen.reading, seen.pairs + len(seen.reading.rows)
    undrawn = f", drawn at random; {reading.undrawn:,} not drawn" if reading.undrawn else ""
    kinds = ", ".join(f"{name} {count:,}" for name, count in reading.formats.most_common()) or "none"
    unused = ", ".join(f"{name} {count:,}" for name, count in sorted(reading.unused.items())) or "none"
    sources = ", ".join(f"{name} {count:,}" for name, count in seen.sources.most_common(8))
    sources += f" and {len(seen.sources) - 8} more" if len(seen.sources) > 8 else ""
    longer = "-" if seen.longer_chosen is None else f"{_percent(seen.longer_chosen)} of the pairs (by characters)"
    return [
        ("file", f"{seen.name} (split {seen.split})"),
        ("rows", f"{reading.count:,} read{undrawn}"),
        ("format", kinds),
        ("not used", f"{unused} (columns, and in how many rows)" if reading.unused else unused),
        ("pairs", f"{seen.pairs:,}; {len(reading.rows):,} of {total:,} left out ({_percent(_share(reading, total))})"),
        ("ties", f"{seen.ties:,} (left out)"),
        ("duplicates", f"{seen.repeats.duplicates:,}"),
        ("contradictions", f"{seen.repeats.contradictions:,} comparisons that are in the file both ways round"),
        ("margins", f"{seen.margins:,} pairs say how much better the chosen response is"),
        ("longer chosen", longer),
        ("sources", sources or "-"),
    ]


def lengths(seen: Survey) -> list[tuple[str, str]]:
    """(label, value) of the lengths of the tokenised pairs against the buckets."""
    middle, high, longest = (int(value) for value in np.quantile(seen.fit.lengths, (0.5, 0.95, 1)))
    of = f"of {seen.sample:,} pairs" + (" drawn at random" if seen.sample < seen.pairs else "")
    rows = [("median, 95 %, longest", f"{middle}, {high}, {longest} {of}")]
    rows += [(f"bucket {bucket}", _percent(share)) for bucket, share in seen.in_buckets()]
    over = float(np.mean(np.array(seen.fit.lengths) > seen.buckets[-1]))
    long = seen.fit.skipped.counts["too long"]
    return [
        *rows,
        (f"longer than {seen.buckets[-1]}", _percent(over)),
        ("  without their oldest turns", f"{seen.fit.shortened:,} pairs"),
        ("  left out", f"{long:,} pairs"),
    ]


def write_page(seen: Survey, verdict: str, path: Path) -> None:
    """Write the survey as a page. It loads nothing."""
    values = {"facts": facts(seen), "lengths": lengths(seen) if seen.fit else []}
    files.write_text(path, render("survey.html.jinja", seen=seen, verdict=verdict, **values))


def verdict(seen: Survey, most_lost: float) -> tuple[bool, str]:
    """Whether a run can train on the file, and what to do if it cannot, or what to look at."""
    if not seen.pairs:
        return False, f"cannot be trained on: {no_usable_row(seen.name, seen.reading)}"
    if seen.failure:
        return False, f"cannot be trained on with this model: {seen.name}: {seen.failure}"
    said = f"{_percent(seen.lost)} of the rows of {seen.name} would be left out"
    if seen.lost > most_lost:
        return False, f"{said}: correct the file, or give data.most_lost={np.ceil(seen.lost * 100) / 100:g} to a run"
    return True, f"it can be trained on; {said}" + (", which is much: look at the reasons" if seen.lost > 0.1 else "")


def _share(skipped, total: int) -> float:
    return len(skipped.rows) / total if total else 0.0


def _loss_lines(title: str, losses: list[Loss]) -> list[str]:
    lines = ["", title] if losses else []
    for loss in losses:
        lines.append(f"  {loss.count:>8,}  {loss.reason}{HINTS.get(loss.reason, '')}")
        lines += [f"            {where}  {_clip(' '.join(row.split()), CLIP)}" for where, row in loss.examples]
    return lines


def _clip(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length] + " …"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
