"""judge.json: it describes how a model's weights are used as a judge. A run's workdir and an export contain it."""

import dataclasses
from pathlib import Path

from dwrl_jax.core import files
from dwrl_jax.core.errors import UserError
from dwrl_jax.dialogue import Texts
from dwrl_jax.objectives import KINDS

DEFAULT_TEXTS = Texts("Judge the response.", "Is this a good response? A: Yes, B: No", ("A", "B"))


@dataclasses.dataclass(frozen=True)
class JudgeCard:
    """The description of a judge. The defaults use an untrained language model as a judge by a prompt alone.

    `kind` is one of `objectives.KINDS`, and `texts` are the texts of the judge's dialogue. `thoughts` says which
    thoughts the judge reads before it answers: "policy" means its own, "start" those of the model that its training
    started from, and "none" no thoughts. Lengths are in tokens: `max_thought`, and the prefix lengths `buckets`, for
    which programs are compiled. `objective` and `hyper` are set if the judge's objective reads scores in its own way.
    """

    kind: str = "verdict"
    texts: Texts = DEFAULT_TEXTS
    thoughts: str = "policy"
    readout: str = "vocab"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_thought: int = 256
    buckets: tuple[int, ...] = (256, 512, 1024)
    chunk: int = 1024
    dtype: str = "float32"
    objective: str = ""
    hyper: dict = dataclasses.field(default_factory=dict)


def as_json(card: JudgeCard) -> dict:
    """The content of judge.json."""
    return {"format": 1, **dataclasses.asdict(card)}


def read_card(path: Path) -> JudgeCard:
    """The card in a file. UserError names the file and what is wrong with it."""
    content = files.read_json(path)
    if content.pop("format", 1) != 1:
        raise UserError(f"{path}: written by a newer dwrl_jax; upgrade to read it")
    known = {field.name for field in dataclasses.fields(JudgeCard)}
    if unknown := sorted(content.keys() - known):
        raise UserError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    try:
        texts = Texts(**content.pop("texts")) if "texts" in content else DEFAULT_TEXTS
        card = JudgeCard(texts=texts, **content)
        card = dataclasses.replace(card, buckets=tuple(sorted(map(int, card.buckets))))
    except (TypeError, ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from None
    if card.kind not in KINDS:
        raise UserError(f"{path}: kind={card.kind!r}; choose one of {', '.join(KINDS)}")
    return card
