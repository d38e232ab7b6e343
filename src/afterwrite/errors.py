"""Everything afterwrite raises or reports: one family, each with what, where and the remedy.

An exception means that a thing could not be done. A ``Finding`` is the answer of a check that ran and saw trouble.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import msgspec


class ExitCode(IntEnum):
    """What a command's exit status means; scripts may rely on it."""

    OK = 0
    ERROR = 1
    USAGE = 2
    GATE = 3
    DRIFT = 4
    REFUSED = 5


class AfterwriteError(Exception):
    """A sentence that says what was found and where, and a remedy that mends it.

    ``str(error)`` is the sentence alone; faces print the remedy beside it.
    """

    exit_code = ExitCode.ERROR

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.remedy = remedy


class UsageError(AfterwriteError):
    """The words given to a command or a call are off."""

    exit_code = ExitCode.USAGE


class GateNotMet(AfterwriteError):  # noqa: N818 - the sentence that it says
    """A condition that must hold before a phase moves does not hold (yet)."""

    exit_code = ExitCode.GATE


class Drift(AfterwriteError):  # noqa: N818 - the sentence that it says
    """The database is not what the plan or the backup says it is."""

    exit_code = ExitCode.DRIFT


class Refused(AfterwriteError):  # noqa: N818 - the sentence that it says
    """Going on would risk the user's data or writes, so nothing was done."""

    exit_code = ExitCode.REFUSED


class DatabaseError(AfterwriteError):
    """PostgreSQL could not be reached, or said no; ``sqlstate`` when the server gave one."""

    def __init__(self, message: str, *, remedy: str | None = None, sqlstate: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.sqlstate = sqlstate


class ConnectionLost(DatabaseError):  # noqa: N818 - the sentence that it says
    """The server went away, or was never there; the same call may succeed later."""


class Severity(StrEnum):
    """How much a finding matters: ``info`` to know, ``warning`` to mend soon, ``error`` forbids going on."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a check saw: a rule's name, what and where in one sentence, and the command that mends it."""

    rule: str
    severity: Severity
    where: str
    text: str
    remedy: str | None = None
