"""Ids of events: UUIDv7 (RFC 9562), in the order in which one process made them, also when its clock jumps back.

::

    48 bits: milliseconds | version 7 | 12: fraction of the millisecond | variant | 62: random

The fraction is method 3 of the RFC's section 6.2. What is made within one 4096th of a millisecond, or while the clock
says an earlier time than before, takes the next fraction.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from threading import RLock
from time import time_ns
from uuid import UUID

_FRACTIONS, _NANOSECONDS = 4096, 1_000_000
_VARIANT = 1 << 63
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN = [f"{fraction:03x}" for fraction in range(_FRACTIONS)]


class Ids:
    """Makes ids for one process; a forked child calls ``reseed``."""

    def __init__(self) -> None:
        self._last = 0
        # A millisecond, and what its ids begin with: as one value, which threads cannot see in halves.
        self._written = (0, "")
        self.reseed()

    def reseed(self) -> None:
        """Other random bits and a lock of this process's own; ids still follow those of before."""
        self._lock = RLock()
        self._bits = random.Random().getrandbits

    def make(self) -> str:
        """The next id, as text."""
        tick = time_ns() * _FRACTIONS // _NANOSECONDS
        if tick > self._last:
            self._last = tick
        else:
            # Only here the order of threads matters: time itself orders all others.
            with self._lock:
                self._last = tick = self._last + 1
        millisecond, beginning = self._written
        if millisecond != tick >> 12:
            beginning = f"{tick >> 28 & 0xFFFFFFFF:08x}-{tick >> 12 & 0xFFFF:04x}-7"
            self._written = (tick >> 12, beginning)
        tail = "%016x" % (self._bits(62) | _VARIANT)
        return f"{beginning}{_WRITTEN[tick & 0xFFF]}-{tail[:4]}-{tail[4:]}"


def moment_of(id: str) -> datetime | None:
    """When a UUIDv7 says that it was made; None for a UUID of another version, and for a time that is none of ours.

    The store knows an event again by its moment and its id: one that comes with an id alone, and may come again, must
    have the same moment each time.
    """
    number = UUID(id)
    if number.version != 7:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=number.int >> 80)
    except OverflowError:
        return None
