"""One process, or one run of several, at a time: a lock on a file, held by the first process until it ends."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from dwrl_jax.core import hosts
from dwrl_jax.core.errors import UserError
from dwrl_jax.core.terminal import say

NAME = "lock"


@contextlib.contextmanager
def held(path: Path, advice: str) -> Iterator[None]:
    """Hold the lock on a file; all processes of a run come here together. `advice` ends the message of a refusal.

    The system releases the lock when the process ends, in any way. The file stays; without its lock it means nothing.
    Bad input that ended a run before it wrote anything leaves no folder behind.

    UserError where another run holds the lock, or where no folder can be made.
    """
    files, made = [], not path.parent.exists()
    hosts.attempt(lambda: files.append(_take(path, advice)))
    try:
        yield
    except UserError:
        if made and files and os.listdir(path.parent) == [path.name]:
            path.unlink()
            path.parent.rmdir()
        raise
    finally:
        for file in files:
            file.close()


def _take(path: Path, advice: str) -> TextIO:
    """The open file, locked by this process. Its text names the process."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:  # a file on the way, or no real disk
        raise UserError(f"{path.parent}: no folder can be made here ({error.strerror}); {advice}") from None
    file = open(path, "a+")  # noqa: SIM115, closing it releases the lock
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{path}: {holder} is at work here; stop it, or {advice}") from None
    except OSError as error:
        say(f"warning: {path}: no locks on this file system ({error.strerror}); start no second run here")
        return file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
