"""The error type that is meant for the person at the keyboard, and the exit codes of the commands."""

import errno
import functools
import os
import sys

from dwrl_jax.core.terminal import say

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # by a disk; not by a fault of ours


class UserError(Exception):
    """Bad input. The message is one line: it names the file, line, key or axis, and what to do."""


class Stopped(Exception):
    """The signal `signal` asked a run to stop. The run's state is saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def disk_refusal(error: BaseException) -> str | None:
    """The words for a disk that refuses to be written to; None for another error.

    Orbax and safetensors have errors of their own for it, which carry the system's words in their text.
    """
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}" if error.errno in REFUSED else None
    full = os.strerror(errno.ENOSPC)
    return full if full in str(error) else None


def exit_cleanly(main):
    """Make an entry point end with one line on stderr: exit code 2 for `UserError`, 128 + signal for `Stopped`.

    A disk that is full or may not be written to is no fault of the program: it has exit code 2 too.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            say(f"error: {error}", sys.stderr, lines=False)
            sys.exit(2)
        except Stopped as stopped:
            say(stopped, sys.stderr)
            sys.exit(128 + stopped.signal)
        except Exception as error:
            reason = disk_refusal(error)
            if reason is None:
                raise
            words = "make room or choose another place; the same command goes on"
            say(f"error: {reason}: {words}", sys.stderr, lines=False)
            sys.exit(2)

    return wrapped
