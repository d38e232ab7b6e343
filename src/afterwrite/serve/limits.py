"""How much a caller may ask: a bucket each, filled evenly, of which a request takes one. Pure but for the clock."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

import msgspec

_MOST_BUCKETS = 10_000


class Allowance(msgspec.Struct, frozen=True):
    """What is left for a caller: whether this request may go on, how many more, and the seconds until there is more."""

    granted: bool
    limit: int
    left: int
    seconds: int


class Limits:
    """Buckets of ``a_minute`` requests each, by whoever asks; those who have not asked for longest are forgotten.

    A forgotten bucket was full again, or there are ten thousand others: then the oldest gets a fresh one early.
    """

    def __init__(self, a_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = a_minute
        self._clock = clock
        self._buckets: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, who: Hashable, count: int = 1) -> Allowance | None:
        """Take from a caller's bucket; None where there is no limit."""
        if not self._limit:
            return None
        now = self._clock()
        left, at = self._buckets.pop(who, (float(self._limit), now))
        left = min(float(self._limit), left + (now - at) * self._limit / 60.0)
        granted = left >= count
        left -= count if granted else 0
        self._buckets[who] = (left, now)
        if len(self._buckets) > _MOST_BUCKETS:
            self._buckets.popitem(last=False)
        lacking = max(0.0, 1.0 - left)
        return Allowance(granted, self._limit, int(left), math.ceil(lacking * 60.0 / self._limit))

    def is_spent(self, who: Hashable) -> bool:
        """Whether nothing is left, without taking anything."""
        found = self.take(who, 0)
        return found is not None and found.left < 1


def headers(allowance: Allowance) -> dict[str, str]:
    """What a response says of it (draft-ietf-httpapi-ratelimit-headers)."""
    said = {
        "RateLimit-Policy": f'"default";q={allowance.limit};w=60',
        "RateLimit": f'"default";r={allowance.left};t={allowance.seconds}',
    }
    if not allowance.granted:
        said["Retry-After"] = str(max(1, allowance.seconds))
    return said
