"""Places where a test may break us: before and after every step that is meant to last.

``AFTERWRITE_FAILPOINTS="sink.before_commit=kill@3;sink.after_commit=lose:0.05"`` arms them; without that variable each
one costs a look at an empty mapping. ``@3`` strikes at the third time the place is reached and then never again,
``:0.05`` each time with that probability (seeded by AFTERWRITE_FAILPOINTS_SEED, so that a run can be repeated).

=========  =====================================================================
kill       SIGKILL to this process: nothing is flushed, nobody is told
lose       ConnectionLost, as if the line had been cut there
full       the server says that its disk is full (53100)
freeze     the process stands still for a second and a half, then goes on
=========  =====================================================================

With AFTERWRITE_FAILPOINTS_LOG each strike appends ``pid name action`` to that file before it happens. A process that
has the variable set, if only to nothing, can be armed anew while it runs: ``arm``.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Mapping

import msgspec

from afterwrite.errors import ConnectionLost, DatabaseError, UsageError

VARIABLE = "AFTERWRITE_FAILPOINTS"
SEED = "AFTERWRITE_FAILPOINTS_SEED"
LOG = "AFTERWRITE_FAILPOINTS_LOG"

FAILPOINTS: Mapping[str, str] = {
    "worker.before_claim": "a session has connected, and does not hold the claim yet",
    "worker.after_claim": "it holds the claim, and has compared nothing",
    "worker.before_stream": "the slot was found to continue the checkpoint, and is not read yet",
    "worker.after_stream": "the stream runs, nothing was read from it",
    "worker.before_observe": "a batch is formed, nobody has seen it",
    "worker.after_observe": "the observers have counted it in memory, the store may have it or not",
    "worker.before_write": "the batch is about to go to the sink",
    "worker.after_write": "the sink has it, neither observers nor slot do for certain",
    "worker.before_settle": "batches are stored, what the observers counted of them is in memory only",
    "worker.after_settle": "store and observers have it, the slot does not know",
    "worker.before_acknowledge": "it is stored and about to be acknowledged",
    "worker.after_acknowledge": "it is acknowledged in memory, and the server may not have heard of it",
    "worker.before_heartbeat": "an idle database is to be moved along",
    "worker.after_heartbeat": "the heartbeat is in the WAL and did not come back yet",
    "stream.before_status": "the server is about to hear what is stored",
    "stream.after_status": "it was told",
    "stream.before_finish": "a worker that was asked to stop is about to end its stream",
    "stream.after_finish": "the stream has ended, the connections have not",
    "spill.before_write": "a part of a big transaction is about to be put aside",
    "spill.after_write": "it is put aside, and the rest is still to come",
    "sink.before_read": "a session is about to read where to begin",
    "sink.after_read": "it knows where to begin",
    "sink.before_begin": "the transaction that stores a batch has not begun",
    "sink.after_begin": "it has begun and holds the checkpoint's lock",
    "sink.before_copy": "no row was sent",
    "sink.before_copy_end": "every row was sent, and COPY has not ended",
    "sink.after_copy": "every row is there, uncommitted",
    "sink.before_commit": "checkpoint, place in the feed and COMMIT are about to go in one message",
    "sink.after_commit": "the batch is stored for good, and its writer is about to hear so",
    "sink.before_move": "a checkpoint is about to move alone",
    "sink.after_move": "it has moved alone, and its writer is about to hear so",
    "spool.before_commit": "a group of events is written, uncommitted",
    "spool.after_commit": "the disk has it, and nobody was told",
    "spool.before_settle": "events are delivered, and their spool still has them",
    "spool.after_settle": "it has them no longer",
    "outbox.before_write": "events of the outbox are read, the store has none of them",
    "outbox.after_write": "the store has them, and the outbox still",
    "outbox.before_commit": "they are deleted, or set aside, uncommitted",
    "outbox.after_commit": "the outbox has them no longer, and nobody was told",
    "broker.before_publish": "messages are about to go to the broker",
    "broker.after_publish": "the broker has acknowledged them, and the spool still has them",
    "broker.before_store": "a writer has a batch from the broker, the store has nothing of it",
    "broker.after_store": "the store has it, and the broker was not told",
    "broker.after_acknowledge": "the broker was told, and may not have heard it",
    "changes.before_publish": "a batch of captured changes is about to go to the broker",
    "changes.after_publish": "the broker has acknowledged it, the store may have it or not",
    "changes.before_store": "a writer has all parts of it, the store has nothing of it",
    "changes.after_store": "the store has it, neither capture nor broker was told",
    "changes.after_acknowledge": "both were told, and the slot may not have heard of it",
    "prove.before_save": "transactions are compared, nothing of it is saved",
    "prove.before_commit": "tallies and watermark are written, uncommitted",
    "prove.after_commit": "they are saved, and the slot does not know",
    "defer.before_run": "bodies are about to run",
    "defer.after_run": "they have run, with the progress, and the replayer is about to hear so",
    "defer.before_marks_commit": "a deferral begins or ends, uncommitted",
    "defer.after_marks_commit": "it has begun or ended, and the replayer is about to hear so",
    "defer.before_progress": "what concerns nobody was passed over, and the progress is about to say so",
    "defer.after_progress": "it says so",
    "slot.before_own": "what it costs to take the slot is noted, whose it is not, uncommitted",
    "slot.after_own": "the slot has its owner",
    "slot.before_publish": "a publication or a replica identity is about to be made or altered",
    "slot.after_publish": "it is what it should be",
    "slot.before_create": "the publications stand, and no slot yet",
    "slot.after_create": "the slot is there, and the store has no checkpoint of it",
    "slot.before_checkpoint": "the store is about to hear where capture begins",
    "slot.after_checkpoint": "it has the first checkpoint",
    "slot.before_gap": "a loss is known in the source, and the store's table gap lacks it",
    "slot.after_gap": "the store has it, the source lists it still",
    "slot.before_drop": "a slot is about to be dropped",
    "slot.after_drop": "it is gone",
    "continuity.before_remember": "what is published is about to be remembered, in the transaction that published it",
    "continuity.after_remember": "it is remembered, uncommitted",
    "continuity.before_note_gap": "something is about to be lost, and nobody has written so",
    "continuity.after_note_gap": "the source says so",
    "continuity.before_close_gap": "a loss is in the store, or was none",
    "continuity.after_close_gap": "the source lists it no longer",
    "governor.before_give_up": "the budget is spent, and nothing was done about it",
    "governor.before_drop": "the loss is written down in the source, the slot is still there",
    "governor.after_give_up": "the slot is gone, and the worker is about to say so",
    "migrate.before_deed": "what a phase, a removal or a rollback does to a table is decided, and not begun",
    "migrate.before_deed_commit": "it is done and told, uncommitted",
    "migrate.after_deed": "it is committed, and nobody was told",
    "migrate.before_fill": "triggers are on again, the log has a hole",
    "migrate.after_fill": "it is filled, and the ledger does not say so",
    "import.before_begin": "a log is to be imported, and nothing says so",
    "import.after_begin": "it is noted with its mapping, and nothing of it was read",
    "import.before_chunk": "a chunk of it is read, and nothing of that stored",
    "import.before_move": "the chunk's rows are in the store, uncommitted; its progress is about to move",
    "import.before_commit": "progress and digest are there as well, uncommitted",
    "import.after_chunk": "all of it is committed, and nobody was told",
    "import.before_lines": "lines of an export are read, and nothing of them stored",
    "import.after_lines": "their activities are stored, and nobody was told",
    "export.before_page": "a page is about to be written",
    "export.before_rename": "the file is written and flushed, under the name of its making",
    "export.after_rename": "it has its name, its manifest has not",
    "maintain.before_make": "a day has no partition yet",
    "maintain.before_make_commit": "it is attached with what waited for it, uncommitted",
    "maintain.after_make": "it has its partition",
    "maintain.before_copy": "many rows wait in the default partition",
    "maintain.after_chunk": "some of them are copied into tables that nobody reads",
    "maintain.after_copy": "all of them are copied, and writers go on",
    "maintain.before_exchange": "what came since is copied too",
    "maintain.before_exchange_commit": "the default partition is exchanged, uncommitted",
    "maintain.after_exchange": "it is exchanged, the old one is still there",
    "maintain.before_check": "a stretch of the old one is about to be compared with what took its place",
    "maintain.before_drop_replaced": "nothing of the old one is missing",
    "maintain.after_drop_replaced": "it is gone",
    "maintain.before_discard": "a copy whose making was interrupted is about to go",
    "maintain.after_discard": "it is gone",
    "maintain.before_build": "a partition lacks an index",
    "maintain.after_build": "it has it",
    "maintain.before_drop_index": "a partition has an index that it needs no more, or cannot use",
    "maintain.after_drop_index": "it is gone",
    "maintain.before_freeze": "a closed partition is not frozen",
    "maintain.after_freeze": "it is",
    "maintain.before_detach": "a day has expired",
    "maintain.before_detach_commit": "it is detached and noted, uncommitted",
    "maintain.after_detach": "it is detached and noted, and takes its room on disk still",
    "maintain.before_drop": "it is about to be counted and dropped",
    "maintain.before_drop_commit": "it is dropped and its count noted, uncommitted",
    "maintain.after_drop": "it is gone",
    "maintain.before_expire_rows": "the default partition has expired rows",
    "maintain.after_expire_rows": "some of them are gone, and noted",
    "maintain.before_expire_batches": "the feed has expired batches",
    "maintain.before_expire_batches_commit": "it begins after some of them, which are gone, uncommitted",
    "maintain.after_expire_batches": "some of them are gone for good, with their contexts",
    "lake.before_write": "a day is to be copied into the lake, and nothing of it is there",
    "lake.after_chunk": "some of it is in files that no version of the table has",
    "lake.before_commit": "all of it is, and the table's log does not say so",
    "lake.after_commit": "the table has it, the store's ledger does not say so",
    "lake.before_note": "it was read back the same, and nothing says so",
    "lake.after_note": "the ledger has it, and the store the day itself",
    "rollup.before_stretch": "the feed has batches that are not counted",
    "rollup.before_stretch_commit": "some of them are counted and the cursor is moved, uncommitted",
    "rollup.after_stretch": "they are counted",
    "rollup.before_names": "an hour may be over whose names are not counted",
    "rollup.before_names_commit": "they are, uncommitted",
    "rollup.after_names": "they are counted",
    "rollup.before_fold": "a day that is over may have too many names",
    "rollup.before_fold_commit": "all but the busiest are summed up, uncommitted",
    "rollup.after_fold": "they are gone",
    "rollup.before_refresh": "the materialized views lack something",
    "rollup.before_refresh_commit": "they are refreshed, uncommitted",
    "rollup.after_refresh": "they say what the tables say",
    "rollup.before_rebuild": "a day is about to be counted anew",
    "rollup.before_rebuild_commit": "it is, uncommitted",
    "rollup.after_rebuild": "it is counted anew",
}

_FREEZE_SECONDS = 1.5
_ARMED = re.compile(r"([a-z_]+\.[a-z_]+)=(kill|lose|full|freeze)(?:@(\d+)|:([0-9.]+))?")


class _Failpoint(msgspec.Struct):
    action: str
    at: int | None
    probability: float
    reached: int = 0

    def strikes(self, dice: random.Random) -> bool:
        self.reached += 1
        return self.reached == self.at if self.at is not None else dice.random() < self.probability


def _read(orders: str) -> dict[str, _Failpoint]:
    armed: dict[str, _Failpoint] = {}
    for words in filter(None, orders.split(";")):
        match = _ARMED.fullmatch(words.strip())
        if match is None:
            raise UsageError(
                f"{VARIABLE} cannot be read at {words!r}", remedy="name=kill, name=lose@3, name=freeze:0.1"
            )
        name, action, at, probability = match.groups()
        if name not in FAILPOINTS:
            raise UsageError(f"there is no failpoint {name}", remedy="FAILPOINTS in failpoints.py lists them")
        armed[name] = _Failpoint(action, int(at) if at else None, float(probability or 1))
    return armed


_armed = _read(os.environ.get(VARIABLE, ""))
_dice = random.Random(os.environ.get(SEED))


def arm(orders: str) -> None:
    """Arm these and disarm all others, in a process that was started with the variable set."""
    if VARIABLE not in os.environ:
        raise UsageError(f"this process was not started to be broken: {VARIABLE} is not set", remedy="set it, to ''")
    global _armed  # noqa: PLW0603 - one look at a module's name is all that a failpoint costs
    _armed = _read(orders)


def failpoint(name: str) -> None:
    """Break here if a test asked for it; nothing otherwise. ``name`` is ``room.before_step`` or ``room.after_step``."""
    point = _armed.get(name) if _armed else None
    if point is None or not point.strikes(_dice):
        return
    _tell(name, point.action)
    match point.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "lose":
            raise ConnectionLost(f"failpoint {name} cut the line", remedy=f"unset {VARIABLE}")
        case "full":
            from psycopg.errors import DiskFull

            raise DatabaseError(
                f"failpoint {name} filled the disk", remedy=f"unset {VARIABLE}", sqlstate="53100"
            ) from DiskFull()
        case _:
            time.sleep(_FREEZE_SECONDS)


def _tell(name: str, action: str) -> None:
    path = os.environ.get(LOG)
    if path is None:
        return
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{os.getpid()} {name} {action}\n".encode())  # one write: a line is whole or not there
    finally:
        os.close(file)
