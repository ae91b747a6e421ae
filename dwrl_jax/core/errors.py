"""The error type that is meant for the person at the keyboard, and the exit codes of the commands."""

import functools
import sys


class UserError(Exception):
    """Bad input. The message is one line: it names the file, line, key or axis, and what to do."""


class Stopped(Exception):
    """The signal `signal` asked a run to stop. The run's state is saved."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


def exit_cleanly(main):
    """Make an entry point end with one line on stderr: exit code 2 for `UserError`, 128 + signal for `Stopped`."""

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
