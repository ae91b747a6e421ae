"""Serve a judge over HTTP: python -m dwrl_jax.serve --model=runs/tiny --port=8080

Every protocol of docs/serve.md is answered by one batcher, and a score equals that of `python -m dwrl_jax.score` with
the same votes and seed. The server answers this machine alone unless --host says otherwise. SIGTERM finishes the
requests that were taken, and ends with exit code 0. It needs pip install 'dwrl_jax[serve]'.
"""

import os

import jax

from dwrl_jax.core import sharding
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say
from dwrl_jax.judge.card import read_card
from dwrl_jax.judge.load import load
from dwrl_jax.judge.votes import number_of
from dwrl_jax.settings.commandline import Flag, command, folder, mesh_sizes, parse_flags, start


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--sizes={text}: give numbers of votes, such as 1,4,8")
    return tuple(sorted(set(map(int, parts))))


TOKEN = "DWRL_JAX_TOKEN"
FLAGS = {
    "model": Flag("runs/tiny", "a run's workdir, an exported or Hugging Face folder, or a hub id", required=True),
    "host": Flag("0.0.0.0", "address to listen at; set a token before you open it", default="127.0.0.1"),
    "port": Flag("8080", "port to listen at; 0 takes a free one", default=8080, read=int),
    "votes": Flag("8", "thoughts per response, or auto: as many as a row needs", default="8"),
    "delta": Flag("0.01", "with --votes=auto, how often equal responses may be told apart", default=0.05, read=float),
    "width": Flag("0.1", "with --votes=auto, how well a single response's score is known", default=0.2, read=float),
    "sizes": Flag("1,4", "votes of the compiled programs; default: 1, 4 and --votes", read=_sizes),
    "max_votes": Flag("16", "most votes that a request may ask for", default=64, read=int),
    "reward": Flag("log_odds", "value in protocols with one number", default="score", choices=("score", "log_odds")),
    "checkpoint": Flag("best", "of a workdir: last, best or the number of a step", default="last"),
    "judge": Flag("judge.json", "questions and read-out in the place of the folder's own judge.json", read=folder),
    "start": Flag("models/start", "the starting model's folder, for its thoughts, or for adapters of it"),
    "seed": Flag("1", "seed of the thoughts", default=0, read=int),
    "batch_size": Flag("32", "questions that are asked at a time", default=16, read=int),
    "in_flight": Flag("1", "batches at a time, each with memory of its own on the device", default=2, read=int),
    "mesh": Flag("data=2,tensor=4", "devices along the axes; else weights are spread over all", read=mesh_sizes),
    "wait_ms": Flag("2", "longest time in ms that a question waits for others", default=5.0, read=float),
    "queue": Flag("1024", "questions that may wait; more are told to come again", default=4096, read=int),
    "max_bytes": Flag("100000", "size of a request at most", default=1 << 20, read=int),
    "timeout": Flag("60", "seconds until a request without a score is given up", default=100.0, read=float),
    "read_timeout": Flag("5", "seconds in which a request must arrive", default=20.0, read=float),
    "stop": Flag("10", "seconds after SIGTERM in which taken requests are finished", default=30.0, read=float),
    "cohort": Flag("8", "rollouts of a prompt that /verify compares with each other", default=1, read=int),
    "cohort_wait": Flag("30", "seconds that a cohort waits for its last rollouts", default=60.0, read=float),
    "token_file": Flag("token.txt", f"file of a token that callers must send; or set {TOKEN}", read=folder),
    "log": Flag("asked.jsonl", "file to which conversations and scores are written", default=""),
}


@command
def main(arguments: list[str] | None = None) -> None:
    given = parse_flags(arguments, FLAGS, __doc__)
    try:
        from dwrl_jax.serving import server, service
    except ModuleNotFoundError as error:
        raise UserError(f"no package {error.name}: pip install 'dwrl_jax[serve]'") from None
    settings = _settings(given)
    compiled = folder(given.model) / "compiled"  # a run's folder keeps programs
    start(compiled.parent if compiled.is_dir() else None)
    card = read_card(given.judge) if given.judge else None
    loaded = load(given.model, checkpoint=given.checkpoint, card=card, start=given.start, mesh=given.mesh)
    with jax.set_mesh(loaded.mesh):
        sharding.check_divides(loaded.mesh, sharding.ROWS, settings.batch_size, "batch_size")
    if given.host not in server.LOCAL and not settings.token:
        say(f"--host={given.host} without a token: everybody who reaches it can ask; set {TOKEN}")
    made = service.make_service(loaded, settings, given.model)
    server.serve(made, given.host, given.port, lambda address: say(f"ready at {address}"))


def _settings(given):
    from dwrl_jax.serving.settings import ServeSettings

    votes = number_of(given.votes, given.delta, given.width)
    fixed = (votes,) if isinstance(votes, int) else ()
    counts = ("batch_size", "in_flight", "queue", "max_votes", "max_bytes")
    times = ("timeout", "read_timeout", "stop", "cohort_wait")
    bounds = dict.fromkeys((*counts, "cohort"), 1) | dict.fromkeys(times, 0.001) | {"wait_ms": 0, "port": 0, "seed": 0}
    for name, least in bounds.items():
        if not getattr(given, name) >= least:
            raise UserError(f"--{name}={getattr(given, name)}: must be at least {least}")
    return ServeSettings(
        votes=votes,
        sizes=given.sizes or tuple(sorted({1, 4, *fixed})),
        wait=given.wait_ms / 1000,
        cohort=given.cohort,
        token=_token(given.token_file),
        log=given.log,
        **{name: getattr(given, name) for name in (*counts, *times, "seed", "reward")},
    )


def _token(path) -> str:
    if path is None:
        return os.environ.get(TOKEN, "")
    try:
        token = path.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--token_file={path}: cannot be read ({error})") from None
    if not token:
        raise UserError(f"--token_file={path}: holds no token")
    return token


if __name__ == "__main__":
    main()
