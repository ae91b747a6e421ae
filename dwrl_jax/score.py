"""Score responses with a trained judge, or with any language model as it comes.

python -m dwrl_jax.score --model=runs/tiny --input=rows.jsonl --output=scored.jsonl

A row has `prompt` (a string or messages) and `response` or `responses`, or is a preference pair. The output has the
rows in their order, with all their columns and score, log_odds, votes, thoughts and rank. A row's scores do not depend
on the other rows. A stopped command goes on when it is given again.
"""

from dwrl_jax.core import files, hosts
from dwrl_jax.core.terminal import say
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.load import load
from dwrl_jax.judge.scored_file import score_file
from dwrl_jax.judge.votes import number_of
from dwrl_jax.settings.commandline import Flag, command, folder, mesh_sizes, parse_flags, start

FLAGS = {
    "model": Flag("runs/tiny", "a run's workdir, an exported or Hugging Face folder, or a hub id", required=True),
    "input": Flag("rows.jsonl", "the rows, in any file or folder that training reads", required=True, read=folder),
    "output": Flag("scored.jsonl", "the file to write, which must not exist", required=True, read=folder),
    "votes": Flag("8", "thoughts per response, whose mean is the score, or auto: as many as a row needs", default="8"),
    "delta": Flag("0.01", "with --votes=auto, how often equal responses may be told apart", default=0.05, read=float),
    "width": Flag("0.1", "with --votes=auto, how well a single response's score is known", default=0.2, read=float),
    "checkpoint": Flag("best", "of a workdir: last, best or the number of a step", default="last"),
    "judge": Flag("judge.json", "questions and read-out in the place of the folder's own judge.json", read=folder),
    "start": Flag("models/start", "the starting model's folder, for its thoughts, or for adapters of it"),
    "seed": Flag("1", "seed of the thoughts", default=0, read=int),
    "batch_size": Flag("32", "questions that are asked at a time", default=16, read=int),
    "mesh": Flag("data=2,tensor=4", "devices along the axes; else weights are spread over all", read=mesh_sizes),
}


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_flags(arguments, FLAGS, __doc__)
    votes = number_of(given.votes, given.delta, given.width)
    start()
    card = read_card(given.judge) if given.judge else None
    loaded = load(given.model, checkpoint=given.checkpoint, card=card, start=given.start, mesh=given.mesh)
    score_file(loaded, given.input, given.output, votes, seed=given.seed, batch_size=given.batch_size)
    if hosts.first():
        errors = [row["error"] for row in files.read_lines(given.output) if "error" in row]
        if errors:
            say(f"{len(errors)} rows could not be scored, the first for: {errors[0]}; see their column error")
    say(given.output)


if __name__ == "__main__":
    main()
