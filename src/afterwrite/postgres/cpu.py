"""CPU time that a cluster on this machine has used, from /proc (Linux). Resolution: a hundredth of a second."""

from __future__ import annotations

import os
from pathlib import Path

# Of /proc/PID/stat after the command in brackets: 1 parent, 11 utime, 12 stime, 13 cutime, 14 cstime.
_PARENT, _OWN, _WITH_CHILDREN = 1, slice(11, 13), slice(11, 15)


def cluster_cpu_seconds(postmaster: int | None) -> float | None:
    """CPU time of the postmaster, its living children and those it has reaped; None where it cannot be known."""
    if postmaster is None or (ticks := _ticks(postmaster, _WITH_CHILDREN)) is None:
        return None
    for entry in Path("/proc").iterdir():
        fields = _fields(int(entry.name)) if entry.name.isdigit() else None
        if fields and int(fields[_PARENT]) == postmaster:
            ticks += sum(int(field) for field in fields[_OWN])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float | None:
    """CPU time of one process; None when it is gone, or where there is no /proc."""
    ticks = _ticks(pid, _OWN)
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int, which: slice) -> int | None:
    fields = _fields(pid)
    return None if fields is None else sum(int(field) for field in fields[which])


def _fields(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:  # it ended while we looked
        return None
