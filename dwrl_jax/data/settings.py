"""The sections `data` and `world` of a config."""

import dataclasses

from dwrl_jax.core.settings import setting
from dwrl_jax.data import worlds


def _ascending(values) -> str | None:
    return None if sorted(set(values)) == list(values) else "give lengths from the smallest to the largest"


def _world(name) -> str | None:
    return None if name in worlds.names() else f"choose one of {', '.join(worlds.names())}"


@dataclasses.dataclass(frozen=True)
class DataSettings:
    train: str = setting(
        "",
        "pairs to learn from: a file (.jsonl, .json, .csv, .parquet, also .gz or .zst), a folder or pattern of files, "
        'a `datasets` name, also NAME:CONFIG, or "world"',
    )
    eval: str = setting("", 'held-out pairs, likewise; "world:alike" is held out and made as the training pairs are')
    train_split: str = setting("train", "split of data.train where that has splits; train[:50%] is a part of it")
    eval_split: str = setting("test", "split of data.eval, likewise")
    format: str = setting("", "format of the rows of both, a file of data/formats; empty to detect it")
    pairs: int = setting(
        0, "training pairs drawn from a file or data set, the same for the same seed; 0 for all", at_least=0
    )
    strict: bool = setting(False, "a malformed row is an error; if false, it is left out and counted", resumable=True)
    most_lost: float = setting(
        0.5,
        "largest share of the rows that may be left out; a run that would lose more stops",
        at_least=0,
        at_most=1,
        resumable=True,
    )
    buckets: tuple = setting(
        (256, 512, 1024),
        "lengths in tokens to which prefixes are padded, each with its own program; the last is the limit",
        fewest=1,
        at_least=1,
        rule=_ascending,
    )
    batch_size: int = setting(16, "pairs per step", at_least=1)
    window: int = setting(16, "number of batches whose pairs are grouped by length; 1 for no grouping", at_least=1)


@dataclasses.dataclass(frozen=True)
class WorldSettings:
    """The built-in world, where data.train or data.eval is "world"."""

    name: str = setting("plain", "the world, a file of data/worlds", rule=_world)
    seed: int = setting(0, "seed from which the world is made")
    clean_share: float = setting(
        0.67,
        "share of the demonstrations with clean chains, which come first; the others have thoughts of mixed quality",
        at_least=0,
        at_most=1,
    )
    pairwise_share: float = setting(
        0.0, "share of the demonstrations that compare both responses, in both orders", at_least=0, at_most=1
    )
