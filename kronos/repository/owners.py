"""The owner of a lease: the identity of a worker, and whether its process is certainly gone.

A lease ends by its time. On Linux another worker of the same machine need not wait for that: a
process that is gone holds nothing.
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
    """Whether the process of an owner certainly lives no longer; False where that is unknown."""
    machine, pid, start, _ = owner.split("/")
    if not machine or machine != _machine():
        return False
    found = _start_of(int(pid))
    if not found and _is_hidden(int(pid)):
        return False
    # If the number belongs to another process now, its start differs.
    return found != start


def _is_hidden(pid: int) -> bool:
    """Whether a process lives that /proc does not show, as it may hide other users' processes."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not (_PROC / str(pid)).exists()


def _machine() -> str:
    """This boot and process namespace of this machine; empty where they are unknown."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        # Processes of two containers may have the same number.
        return f"{boot}:{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _start_of(pid: int) -> str:
    """When a process began, in ticks since the boot; empty when it does not exist."""
    try:
        line = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return ""
    # The process's name before these fields may hold any character, also brackets and blanks.
    fields = line.rpartition(")")[2].split()
    # A killed process that its parent has not reaped yet does nothing any more.
    return "" if fields[0] in "ZX" else fields[19]
