"""Who holds a lease: a worker, told from every other one, and whether it is certainly gone.

A lease ends by its time. On Linux a worker of the same machine need not wait for that: a process
that is gone holds nothing.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

_PROC = Path("/proc")


def new_owner() -> str:
    """A name for one worker of this process: machine, process, its start, and a number."""
    pid = os.getpid()
    return f"{_machine()}/{pid}/{_start_of(pid)}/{uuid.uuid4().hex[:8]}"


def is_gone(owner: str) -> bool:
    """Whether the process of an owner certainly lives no longer; False when nobody can tell."""
    machine, pid, start, _ = owner.split("/")
    if not machine or machine != _machine():
        return False
    found = _start_of(int(pid))
    if not found and _is_hidden(int(pid)):
        return False
    # A number that was given to another process has another start.
    return found != start


def _is_hidden(pid: int) -> bool:
    """Whether a process lives that /proc does not show, as those of other users may be."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not (_PROC / str(pid)).exists()


def _machine() -> str:
    """This boot of this machine, as its processes see each other; empty where nobody can tell."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        # Two containers have processes with the same number.
        return f"{boot}:{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in ticks since the boot; empty when there is none."""
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    # The name before it may hold anything, brackets and blanks too.
    fields = line.rpartition(")")[2].split()
    # A process that was killed and whose parent has not asked for it yet does nothing any more.
    return "" if fields[0] in "ZX" else fields[19]
