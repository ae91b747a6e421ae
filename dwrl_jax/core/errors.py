"""The one error type that is meant for the person at the keyboard, and its way to the shell."""

import functools
import sys


class UserError(Exception):
    """Bad input. The message is one line: it names the file, line, key or axis, and what to do."""


class Stopped(Exception):
    """A run was asked to stop, by `signal`; its state is saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def exit_cleanly(main):
    """Let an entry point end a `UserError` as one line on stderr and exit code 2, `Stopped` as 128 + signal."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            sys.exit(128 + stopped.signal)

    return wrapped
