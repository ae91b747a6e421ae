"""Look at a file of pairs before training: format, losses, lengths, dialogues as the model reads them.

python -m dwrl_jax.inspect_data --model=FOLDER pairs.jsonl

The file may be anything that data.train may be. Exit code 0: a run can train on it, 2: it cannot, with what to do. Of
a large file a random part is read and tokenised, and the text says so. The lengths are those of the default questions.
"""

import sys
from pathlib import Path

from tqdm import tqdm

from dwrl_jax.core.errors import UserError
from dwrl_jax.core.names import ARCHITECTURE
from dwrl_jax.core.terminal import say
from dwrl_jax.data.survey import survey
from dwrl_jax.dialogue.questions import CONTROLS, LAYOUTS
from dwrl_jax.dialogue.tokenizers import load_tokenizer
from dwrl_jax.reporting.survey import text, verdict, write_page
from dwrl_jax.settings.commandline import Flag, command, folder, parse_flags
from dwrl_jax.training.config import base_config
from dwrl_jax.training.sources import make_talk

BUCKETS = base_config().data.buckets


def count(value: str) -> int:
    if not value.isdigit():
        raise UserError(f"{value}: give a number of rows or pairs, or 0 for all")
    return int(value)


def lengths(value: str) -> tuple[int, ...]:
    """Lengths from "256,512,1024"."""
    sizes = [int(size) for size in value.split(",") if size.strip().isdigit()]
    if not sizes or len(sizes) < value.count(",") + 1 or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise UserError(f"--buckets={value}: give lengths from the smallest to the largest, such as 256,512,1024")
    return tuple(sizes)


FLAGS = {
    "file": Flag("pairs.jsonl", "the file; its name alone does as well", required=True),
    "model": Flag("models/qwen", "whose tokenizer: a Hugging Face folder, hub id or workdir of a run", required=True),
    "split": Flag("train", "of a folder or data set; train[:50%] is a part of it", default="train"),
    "format": Flag("arena", "the format of the rows; else it is detected", default=""),
    "layout": Flag("one_turn", "as dialogue.layout", default="two_turns", choices=LAYOUTS),
    "control": Flag("escape", "as dialogue.control", default="skip", choices=CONTROLS),
    "buckets": Flag("256,512", "as data.buckets; the last is the limit", default=BUCKETS, read=lengths),
    "rows": Flag("200000", "rows that are read, drawn at random; 0 for all", default=500_000, read=count),
    "sample": Flag("20000", "pairs that are tokenised, drawn at random; 0 for all", default=20_000, read=count),
    "output": Flag("look.html", "a page with all this", read=folder),
}


def _with_file(arguments: list[str]) -> list[str]:
    """The arguments, with --file= before a name that stands alone."""
    values = [before.startswith("--") and "=" not in before for before in ["", *arguments]]
    return [word if word.startswith("-") or value else f"--file={word}" for word, value in zip(arguments, values)]


def _bar(items, what: str):
    return tqdm(items, desc=what, disable=None, leave=False, dynamic_ncols=True)


@command
def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parse_flags(_with_file(arguments), FLAGS, __doc__)
    kept = Path(given.model) / ARCHITECTURE
    config = base_config()
    config.dialogue.layout, config.dialogue.control = given.layout, given.control
    talk = make_talk(config, load_tokenizer(kept if kept.is_dir() else given.model), "verdict")
    options = {"split": given.split, "format": given.format, "rows": given.rows, "sample": given.sample}
    seen = survey(given.file, talk, given.buckets, **options, watch=_bar)
    usable, said = verdict(seen, config.data.most_lost)
    say(text(seen))
    if given.output:
        write_page(seen, said, given.output)
        say(given.output)
    if not usable:
        raise UserError(said)
    say(said)


if __name__ == "__main__":
    main()
