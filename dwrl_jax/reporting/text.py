"""The results of a run as lines of text, for a terminal."""

READERS = {"no_thought": "best no-thought reader", "ceiling": "noise ceiling"}


def table(results: dict) -> str:
    """Lines with accuracy, interval, NLL and ties of both models with each number of votes, then the gains."""
    rows = [(f"{name}, k = {k[1:]}", cell) for name in ("base", "trained") for k, cell in results[name].items()]
    rows += [(title, results["reference"][name]) for name, title in READERS.items() if results["reference"].get(name)]
    return "\n".join(
        [
            f"{'held-out pairs':28} {'accuracy':>8}  {'95 % interval':>15} {'NLL':>7} {'ties':>6}",
            *(_row(title, cell) for title, cell in rows),
            *(_gain(votes, gain) for votes, gain in results["gain"].items()),
            f"{results['steps']} steps, {results['seconds']:.0f} s of training",
        ]
    )


def _row(title: str, cell: dict) -> str:
    low, high = (100 * bound for bound in cell["interval"])
    between = f"{low:.1f} to {high:.1f}"
    flips = f"   flips {100 * cell['flips']:.1f}%" if "flips" in cell else ""
    return (
        f"{title:28} {100 * cell['accuracy']:7.1f}%  {between:>15} {cell['nll']:7.3f} {100 * cell['ties']:5.1f}%{flips}"
    )


def _gain(votes: str, gain: dict) -> str:
    low, high = (100 * bound for bound in gain["interval"])
    points = f"{100 * gain['accuracy']:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"
    return f"gain at k = {votes[1:]}: {points}"
