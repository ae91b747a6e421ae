"""What a run writes down as it goes: metrics.jsonl, tensorboard scalars, thoughts as text, scores of held-out pairs.

Every file is made of lines that carry their step, so a resumed run drops those past its checkpoint and goes on.
Of several processes the first one writes.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorboardX
from jaxtyping import Float

from dwrl_jax.core import files, hosts
from dwrl_jax.core.types import PreferenceBatch, ThoughtBatch
from dwrl_jax.data.pairs import Pair

SIDES = ("chosen", "rejected")


@hosts.by_first
def rewind(workdir: Path, step: int) -> None:
    """Drop the lines that were written after `step`: they will be written again."""
    for name in ("metrics.jsonl", "thoughts.jsonl"):
        if (workdir / name).exists():
            files.keep_lines(workdir / name, lambda row: row["step"] <= step, needs="step")


def open_tensorboard(workdir: Path, step: int) -> tensorboardX.SummaryWriter | contextlib.nullcontext:
    """Where scalars and texts go from `step` on; nowhere on processes that do not write."""
    if not hosts.first():
        return contextlib.nullcontext()
    return tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)


@hosts.by_first
def write_metrics(workdir: Path, board: tensorboardX.SummaryWriter, step: int, metrics: dict[str, float]) -> None:
    """One line of metrics.jsonl, and the same as scalars."""
    files.append_lines(workdir / "metrics.jsonl", [{"step": step, **metrics}])
    for name, value in metrics.items():
        board.add_scalar(name, value, step)


def thought_rows(
    batch: PreferenceBatch,
    thoughts: ThoughtBatch,
    log_scores: Float[np.ndarray, "B S G"],
    weights: dict[str, np.ndarray],
    *,
    pairs: int,
    end: int,
    decode: Callable[[np.ndarray], str],
    describe: Callable[[int], Pair],
) -> list[dict]:
    """Rows of thoughts.jsonl for the first pairs of a batch, from arrays on the host; `describe` finds the pair
    of an id. Scores and weights are those under the policy that sampled. In pairwise dialogues the side's response
    is the one that is shown first, and the score is the probability of the right label.
    """
    rows = []
    for b in np.flatnonzero(batch.valid)[:pairs]:
        pair = describe(int(batch.pair_id[b]))
        for s, side in enumerate(SIDES):
            for g in range(log_scores.shape[2]):
                ids = thoughts.thought[b, s, g, : thoughts.thought_len[b, s, g]]
                ended = ids[-1] == end
                rows.append(
                    {
                        "pair": int(batch.pair_id[b]),
                        "side": side,
                        "sample": g,
                        "prompt": list(pair.prompt),
                        "response": getattr(pair, side),
                        "thought": decode(ids[:-1] if ended else ids),
                        "cut_off": bool(not ended),
                        "score": float(np.exp(log_scores[b, s, g])),
                    }
                    | {name: float(weight[(b, s, g)[: weight.ndim]]) for name, weight in weights.items()}
                )
    return rows


@hosts.by_first
def write_thoughts(workdir: Path, board: tensorboardX.SummaryWriter, rows: list[dict], step: int) -> None:
    """Lines of thoughts.jsonl, and the same as text for tensorboard."""
    files.append_lines(workdir / "thoughts.jsonl", rows)

    def line(row):
        weight = f"weight {row['dual_weight']:+.3f} " if "dual_weight" in row else ""
        return f"    {row['side']:8} score {row['score']:.3f} {weight}{row['thought']}"

    lines = [line(row) for row in rows]
    board.add_text("thoughts", "\n".join(lines), step)


@hosts.by_first
def write_scores(path: Path, ids: np.ndarray, log_scores: np.ndarray) -> None:
    """One line per held-out pair: its id and the log score of every vote, [chosen, rejected]. Atomic."""
    path.parent.mkdir(exist_ok=True)
    pairs = zip(ids.tolist(), log_scores.tolist())
    files.write_lines(path, ({"pair": pair_id, "log_scores": scores} for pair_id, scores in pairs))


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pair ids [N] and log scores [N, S, K] as `write_scores` left them."""
    rows = list(files.read_lines(path, needs="log_scores"))
    return np.array([row["pair"] for row in rows]), np.array([row["log_scores"] for row in rows])


@hosts.by_first
def write_json(path: Path, content: dict) -> None:
    """Write a whole file or none."""
    files.write_json(path, content)


def total(workdir: Path, name: str) -> float:
    """Sum of a metric over all steps."""
    return sum(row.get(name, 0.0) for row in files.read_lines(workdir / "metrics.jsonl"))
