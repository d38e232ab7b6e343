"""Places where a test may break us: before and after every step that is meant to last.

``AFTERWRITE_FAILPOINTS="sink.before_commit=kill@3;sink.after_commit=lose:0.05"`` arms them; without that variable each
one costs a look at an empty mapping. ``@3`` strikes at the third time the place is reached and then never again,
``:0.05`` each time with that probability (seeded by AFTERWRITE_FAILPOINTS_SEED, so that a run can be repeated).

=========  =====================================================================
kill       SIGKILL to this process: nothing is flushed, nobody is told
lose       ConnectionLost, as if the line had been cut there
freeze     the process stands still for a second and a half, then goes on
=========  =====================================================================
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Mapping

import msgspec

from afterwrite.errors import ConnectionLost, UsageError

VARIABLE = "AFTERWRITE_FAILPOINTS"
SEED = "AFTERWRITE_FAILPOINTS_SEED"
_FREEZE_SECONDS = 1.5
_ARMED = re.compile(r"([a-z_.]+)=(kill|lose|freeze)(?:@(\d+)|:([0-9.]+))?")


class _Failpoint(msgspec.Struct):
    action: str
    at: int | None
    probability: float
    reached: int = 0

    def strikes(self, dice: random.Random) -> bool:
        self.reached += 1
        return self.reached == self.at if self.at is not None else dice.random() < self.probability


def _read(environment: Mapping[str, str]) -> dict[str, _Failpoint]:
    armed: dict[str, _Failpoint] = {}
    for words in filter(None, environment.get(VARIABLE, "").split(";")):
        match = _ARMED.fullmatch(words.strip())
        if match is None:
            raise UsageError(
                f"{VARIABLE} cannot be read at {words!r}", remedy="name=kill, name=lose@3, name=freeze:0.1"
            )
        name, action, at, probability = match.groups()
        armed[name] = _Failpoint(action, int(at) if at else None, float(probability or 1))
    return armed


_armed = _read(os.environ)
_dice = random.Random(os.environ.get(SEED))


def failpoint(name: str) -> None:
    """Break here if a test asked for it; nothing otherwise. ``name`` is ``room.before_step`` or ``room.after_step``."""
    point = _armed.get(name) if _armed else None
    if point is None or not point.strikes(_dice):
        return
    match point.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose":
            raise ConnectionLost(f"failpoint {name} cut the line", remedy=f"unset {VARIABLE}")
        case _:
            time.sleep(_FREEZE_SECONDS)
