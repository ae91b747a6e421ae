"""One accelerator, measured in minutes: kernels tested, decoding, updates, memory, and PyTorch beside it.

    python -m studies.accelerator.run --output=runs/accelerator              # a GPU with 80 GB or more
    python -m studies.accelerator.run --output=runs/trial --small            # any machine: does the script run?
    python -m studies.accelerator.run --output=... --beside="python -m pytest tests/models/test_gpu.py"

Every work is a process of its own. All compile at the same time; each is then timed alone. A work that fails or
takes too long costs itself. Figures are written to OUTPUT/figures.jsonl as they come.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[2]
READY, GO, RESULT = "READY", "GO", "RESULT "
B05, B7 = "qwen2.5-0.5b", "qwen2.5-7b"
WORKS = {
    "ceilings": {"kind": "ceilings", "shape": B05, "prompts": 2},
    "decode 0.5B, 64 sequences": {"kind": "decode", "shape": B05, "prompts": 8},
    "decode 0.5B, 512 sequences": {"kind": "decode", "shape": B05, "prompts": 64},
    "decode 7B, 64 sequences": {"kind": "decode", "shape": B7, "prompts": 8},
    "decode 7B, 256 sequences": {"kind": "decode", "shape": B7, "prompts": 32},
    "update 0.5B": {"kind": "update", "shape": B05, "prompts": 16},
    "update 7B, 8 of 28 layers": {"kind": "update", "shape": B7, "prompts": 16, "layers": 8, "micro_batches": 2},
    "update 7B": {"kind": "update", "shape": B7, "prompts": 8, "remat": "full"},
    "transformers generate 0.5B, 64 sequences": {"kind": "peer_generate", "shape": B05, "prompts": 8},
    "transformers generate 7B, 64 sequences": {"kind": "peer_generate", "shape": B7, "prompts": 8},
    "PyTorch update 0.5B": {"kind": "peer_update", "shape": B05, "prompts": 16, "micro_batches": 4},
    "PyTorch update 7B, 8 of 28 layers": {
        "kind": "peer_update",
        "shape": B7,
        "prompts": 16,
        "layers": 8,
        "micro_batches": 4,
    },
}
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
    "PYTHONUNBUFFERED": "1",
}
SMALL = {"shape": "tiny", "layers": 1, "group": 2, "plen": 64, "new": 32, "prompts": 4}


class Child:
    """A work in a process of its own; `lines` are those that it printed."""

    def __init__(self, name: str, work: dict, log: Path):
        environment = os.environ | ENVIRONMENT
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {work.get('flags', '')}".strip()
        command = [sys.executable, "-m", "studies.accelerator.run", f"--work={json.dumps(work)}"]
        self.name, self.lines = name, []
        with log.open("w") as errors:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)
        self.changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in itertools.chain(self.process.stdout, [None]):
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()

    def wait(self, begins: str, until: float) -> str | None:
        """The first line that begins so; None if the process ended or the time `until` came first."""
        with self.changed:
            while True:
                for line in self.lines:
                    if line is None or line.startswith(begins):
                        return line
                if not self.changed.wait(max(until - time.monotonic(), 0)):
                    return None

    def say(self, word: str):
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it has ended, which `wait` sees

    def end(self):
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def one_work(text: str) -> None:
    """A work in this process: compile, say so, wait for the word, measure, print the figures."""
    values = json.loads(text)
    if values["kind"].startswith("peer"):
        from studies.accelerator import peers as works
    else:
        from studies.accelerator import work as works
    from studies.accelerator.work import Work

    measure = works.KINDS[values["kind"]](Work(**values))
    print(READY, flush=True)
    if sys.stdin.readline().strip() == GO:
        print(RESULT + json.dumps(measure()), flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for figures and logs")
    parser.add_argument("--only", default="", help="works whose names contain this")
    parser.add_argument("--small", action="store_true", help="small sizes, for a trial on any machine")
    parser.add_argument("--minutes", type=float, default=8, help="after these minutes nothing more is begun")
    parser.add_argument("--at-once", type=int, default=6, help="works that compile at the same time")
    parser.add_argument("--works", type=Path, help="a JSON file of works in the place of the built-in ones")
    parser.add_argument(
        "--beside", help="a command that runs while the works compile; they are timed after it has ended"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    a = parser.parse_args(arguments)
    if a.work:
        return one_work(a.work)
    if not a.output:
        parser.error("--output=FOLDER is missing")
    works = json.loads(a.works.read_text(encoding="utf-8")) if a.works else WORKS
    works = {name: work | (SMALL if a.small else {}) for name, work in works.items() if a.only in name}
    a.output.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * a.minutes
    beside = subprocess.Popen(a.beside, shell=True, env=os.environ | ENVIRONMENT) if a.beside else None
    measure_all(works, a.output, until, a.at_once, beside)


def measure_all(works: dict, output: Path, until: float, at_once: int, beside: subprocess.Popen | None) -> None:
    waiting, children = list(works), []
    bar = tqdm(total=len(works), disable=not sys.stderr.isatty(), dynamic_ncols=True)
    with open(output / "figures.jsonl", "a", encoding="utf-8") as figures:
        while waiting or children:
            while waiting and len(children) < at_once and time.monotonic() < until:
                name = waiting.pop(0)
                log = output / f"{name.replace(' ', '_').replace(',', '')}.log"
                children.append(Child(name, works[name], log))
            if not children:
                break
            for child in children:
                child.wait(READY, until)
            if beside:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    beside.wait(max(until - time.monotonic(), 0))
            for child in children:
                bar.set_description(child.name)
                child.say(GO)
                line = child.wait(RESULT, until)
                child.end()
                result = json.loads(line.removeprefix(RESULT)) if line else {"failed": True}
                figures.write(json.dumps({"name": child.name, "work": works[child.name]} | result) + "\n")
                figures.flush()
                shown = {k: v for k, v in result.items() if k not in ("kernels",)}
                tqdm.write(f"{child.name}: {json.dumps(shown)}")
                bar.update()
            children = []
    bar.close()


if __name__ == "__main__":
    main()
