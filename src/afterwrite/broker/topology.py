"""What belongs together: which lane an activity goes to, which lanes a partition is, and how stream and consumers are.

Lanes are fixed, 64 subjects; partitions are as many as the stream's metadata says, and each is some of the lanes. What
has one tenant has one lane, so that the broker's order of a lane is its order. How many partitions there are may
change: the subjects, and what lies there, stay. Nothing here talks to anybody.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from afterwrite.errors import UsageError
from afterwrite.record import Activity

LANES = 64
PARTITIONS = "afterwrite.partitions"
GROUP = "writers"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")
_SECOND = 1_000_000_000
_ACK_SECONDS = 60
# In flight to one writer, in messages; each holds many activities.
_MOST_PENDING = 4_096
# A writer that has not asked for so long is taken to be gone.
TAKEOVER_SECONDS = 4
DUPLICATE_SECONDS = 120


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream is to be."""

    stream: str
    partitions: int = 4
    replicas: int = 3
    max_bytes: int = 8 << 30

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
        "metadata": {PARTITIONS: str(layout.partitions)},
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


def partitions_of(config: Mapping[str, Any]) -> int | None:
    """How many partitions a stream says that it has; None where it is no stream of ours."""
    told = cast("dict[str, str]", config.get("metadata") or {}).get(PARTITIONS, "")
    return int(told) if told.isdecimal() and 1 <= int(told) <= LANES else None


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
