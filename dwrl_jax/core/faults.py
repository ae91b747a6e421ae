"""Named points at which a test can end the process, as a lost machine would.

DWRL_JAX_FAULT=NAME:COUNT kills the process when it comes to the point NAME for the COUNT-th time. Without the variable
a point does nothing.
"""

import os
import signal

_left: dict[str, int] = {}


def arm() -> None:
    """Read the variable, as the first import does; a process that was forked may have another one."""
    name, _, count = os.environ.get("DWRL_JAX_FAULT", "").partition(":")
    _left.update({name: int(count or 1)} if name else {})


def point(name: str) -> None:
    """The place `name` in the work of a process."""
    if name not in _left:
        return
    _left[name] -= 1
    if not _left[name]:
        os.kill(os.getpid(), signal.SIGKILL)


arm()
