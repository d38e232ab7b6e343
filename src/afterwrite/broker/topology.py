"""What belongs together: which lane an activity goes to, which lanes a partition is, and how stream and consumers are.

Lanes are fixed, 64 subjects; partitions are as many as the stream's metadata says, and each is some of the lanes. What
has one tenant has one lane, so that the broker's order of a lane is its order. How many partitions there are may
change: the subjects, and what lies there, stay. Nothing here talks to anybody.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from afterwrite.errors import UsageError
from afterwrite.record import Activity

LANES = 64
PARTITIONS = "afterwrite.partitions"
STORE = "afterwrite.store"
GROUP = "writers"
# What writers are given comes there: recorders and captures, who hear all of _INBOX, are not to read what others say.
WRITERS_INBOX = "_WRITERS"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SECOND = 1_000_000_000
_ACK_SECONDS = 60
# In flight to one writer, in messages; each holds many activities.
_MOST_PENDING = 4_096
# A writer that has not asked for so long is taken to be gone.
TAKEOVER_SECONDS = 4
DUPLICATE_SECONDS = 120
# A long batch is stored for as long as it takes; who is gone is known by the pin.
_CHANGES_ACK_SECONDS = 86_400
_LANE = re.compile(r"[A-Za-z0-9_-]{1,48}")
_SOURCE_CONSUMER = "source-"


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is to be."""

    stream: str
    partitions: int = 4
    replicas: int = 3
    max_bytes: int = 8 << 30
    # Which store what is published is for, and no other; None: that is not known.
    store: str | None = None
    # How much of captured changes may be on its way; None: none are published.
    changes_bytes: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.stream):
            raise UsageError(f"{self.stream!r} is no name of a stream", remedy="letters, digits, - and _, 32 at most")
        if not 1 <= self.partitions <= LANES:
            raise UsageError(f"{self.partitions} partitions cannot be", remedy=f"1 to {LANES}")


def lane_of(activity: Activity) -> int:
    """The lane: by the tenant, without one by what it is about, by who did it, or by itself."""
    if activity.tenant_id is not None:
        key = f"t\0{activity.tenant_id}"
    elif activity.entity_id is not None:
        key = f"e\0{activity.entity_type}\0{activity.entity_id}"
    elif activity.actor_id is not None:
        key = f"a\0{activity.actor_id}"
    else:
        key = activity.id
    return zlib.crc32(key.encode(errors="surrogatepass")) % LANES


def subject_of(stream: str, lane: int) -> str:
    return f"{stream.lower()}.{lane:02x}"


def refused_subject(stream: str) -> str:
    """Where writers put what the store does not take."""
    return f"{stream.lower()}.refused"


def subjects(stream: str) -> list[str]:
    return [*(subject_of(stream, lane) for lane in range(LANES)), refused_subject(stream)]


def partition_subjects(stream: str, partition: int, partitions: int) -> list[str]:
    return [subject_of(stream, lane) for lane in range(partition, LANES, partitions)]


def consumer_name(partition: int) -> str:
    return f"writer-{partition}"


def stream_config(layout: Layout) -> dict[str, Any]:
    """The stream: what it holds goes when a writer has stored it, and in no other way; full, it takes nothing more."""
    return {
        "name": layout.stream,
        "description": "What afterwrite's recorders have published and no writer has stored yet",
        "subjects": subjects(layout.stream),
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": layout.replicas,
        "discard": "new",
        "max_bytes": layout.max_bytes,
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": DUPLICATE_SECONDS * _SECOND,
        # Blocks that nats-server 2.15 had compressed could not be read after SIGKILL.
        "compression": "none",
        "metadata": {PARTITIONS: str(layout.partitions), **({STORE: layout.store} if layout.store else {})},
    }


def consumer_config(stream: str, partition: int, partitions: int) -> dict[str, Any]:
    """The consumer of a partition: one writer is pinned, and what it does not acknowledge never counts as done."""
    return {
        "name": consumer_name(partition),
        "durable_name": consumer_name(partition),
        "filter_subjects": partition_subjects(stream, partition, partitions),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": _ACK_SECONDS * _SECOND,
        "max_deliver": -1,
        "max_ack_pending": _MOST_PENDING,
        "priority_groups": [GROUP],
        "priority_policy": "pinned_client",
        "priority_timeout": TAKEOVER_SECONDS * _SECOND,
    }


def changes_stream(stream: str) -> str:
    """The stream of captured changes beside that of events."""
    return f"{stream}_CHANGES"


def lane_of_source(source: str) -> str:
    """What a source is called in subjects: its own name, or a digest of one that cannot stand there."""
    return source if _LANE.fullmatch(source) else f"x-{hashlib.sha256(source.encode()).hexdigest()[:32]}"


def outbox_of_source(source: str) -> str:
    """The same for the events of the source's outbox, which go their own way."""
    return f"{lane_of_source(source)}.outbox"


def changes_subject(stream: str, lane: str) -> str:
    return f"{stream.lower()}.changes.{lane}"


def changes_subjects(stream: str) -> str:
    """All of them."""
    return f"{stream.lower()}.changes.>"


def lane_of_subject(stream: str, subject: str) -> str:
    return subject.removeprefix(changes_subject(stream, ""))


def question_subject(stream: str) -> str:
    """Where captures ask writers how far a source is stored; no stream keeps that."""
    return f"{stream.lower()}.stored"


def source_consumer_name(lane: str) -> str:
    return _SOURCE_CONSUMER + lane.replace(".", "+")


def lane_of_consumer(name: str) -> str | None:
    """Whose consumer this is, or None where it is none of ours."""
    return name.removeprefix(_SOURCE_CONSUMER).replace("+", ".") if name.startswith(_SOURCE_CONSUMER) else None


def changes_config(stream: str, *, replicas: int, max_bytes: int) -> dict[str, Any]:
    """The stream of captured changes: of each source it holds the batch that is on its way, and takes the next for it.

    A batch that is published again comes in the place of the one before (Nats-Rollup).
    """
    return {
        "name": changes_stream(stream),
        "description": "What afterwrite's captures have published and no writer has stored yet",
        "subjects": [changes_subjects(stream)],
        "retention": "workqueue",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "max_bytes": max_bytes,
        "max_age": 0,
        "max_msgs": -1,
        "max_msgs_per_subject": -1,
        "compression": "none",
        "allow_rollup_hdrs": True,
    }


def source_consumer_config(stream: str, lane: str) -> dict[str, Any]:
    """The consumer of a source: one writer is pinned, and has all parts of a batch."""
    return {
        "name": source_consumer_name(lane),
        "durable_name": source_consumer_name(lane),
        "filter_subjects": [changes_subject(stream, lane)],
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "ack_wait": _CHANGES_ACK_SECONDS * _SECOND,
        "max_deliver": -1,
        "max_ack_pending": -1,
        "priority_groups": [GROUP],
        "priority_policy": "pinned_client",
        "priority_timeout": TAKEOVER_SECONDS * _SECOND,
    }


def metadata_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What a stream is told to say of itself; of a stream that nobody told anything, nothing."""
    return cast("dict[str, str]", config.get("metadata") or {})


def partitions_of(config: Mapping[str, Any]) -> int | None:
    """How many partitions a stream says that it has; None where it is no stream of ours."""
    told = metadata_of(config).get(PARTITIONS, "")
    return int(told) if told.isdecimal() and 1 <= int(told) <= LANES else None


def store_of(config: Mapping[str, Any]) -> str | None:
    """Which store a stream says that it is for."""
    return metadata_of(config).get(STORE)


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Which of the wanted settings are other ones in what was found; lists are compared without their order."""
    return [name for name, value in wanted.items() if _plain(found.get(name)) != _plain(value) and name != "metadata"]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return sorted(cast("list[Any]", value), key=repr)
    # The server leaves out what is zero, and says -1 for what has no limit.
    return None if value in (0, -1, "", False, "none") else value


def names(consumers: Sequence[Mapping[str, Any]]) -> set[str]:
    return {str(consumer["name"]) for consumer in consumers}
