"""Activities of one slot in one message: the JSON array that a spool holds, too.

A message costs the brokers the same whether it holds one activity or hundreds: an entry in three logs, flushed. Its id
says exactly what is in it, so that the brokers' own de-duplication never takes a longer one for a shorter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import msgspec

from afterwrite.broker.topology import slot_of
from afterwrite.record import Activity
from afterwrite.recorder.spool import Event, without_absent

MESSAGE_ID = "Nats-Msg-Id"
RECEIPT = "Afterwrite-Receipt"
_MOST_ACTIVITIES = 500
_MOST_BYTES = 256 << 10
# What headers and the protocol's own line take of the longest message.
OVERHEAD_BYTES = 4 << 10

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(list[Event])


class Bundle(msgspec.Struct, frozen=True, gc=False):
    """What goes as one message."""

    slot: int
    id: str
    ids: tuple[str, ...]
    body: bytes


def bundle(activities: Iterable[Activity], *, longest: int) -> tuple[list[list[Bundle]], dict[str, str]]:
    """Rounds of messages, in a round at most one for each slot; and what is too long for any, with the reason, by id.

    Of a slot the next message is to be sent when the one before is acknowledged: so none overtakes another.
    """
    longest -= OVERHEAD_BYTES
    most = min(_MOST_BYTES, longest)
    refused: dict[str, str] = {}
    waiting: dict[int, list[tuple[str, bytes]]] = {}
    for activity in activities:
        body = _encode(without_absent(activity))
        if len(body) + 2 > longest:
            refused[activity.id] = f"it is {len(body):,} bytes long, and the broker takes {longest:,}"
            continue
        waiting.setdefault(slot_of(activity), []).append((activity.id, body))
    rounds: list[list[Bundle]] = []
    for slot, parts in waiting.items():
        for number, some in enumerate(_split(parts, most)):
            if number == len(rounds):
                rounds.append([])
            ids = tuple(id for id, _ in some)
            rounds[number].append(Bundle(slot, name(ids), ids, b"[" + b",".join(body for _, body in some) + b"]"))
    return rounds, refused


def name(ids: Sequence[str]) -> str:
    """The message's id: of one activity its own, of several one that only they give."""
    return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:40]


def unbundle(body: bytes) -> list[Event]:
    """The activities of a message; raises ValueError when it is none of ours."""
    events = _decoder.decode(body)
    for event in events:
        if not bytes(event.metadata):  # sinks know that as None
            msgspec.structs.force_setattr(event, "metadata", None)
    return events


def _split(parts: Sequence[tuple[str, bytes]], most: int) -> Iterable[list[tuple[str, bytes]]]:
    some: list[tuple[str, bytes]] = []
    size = 2
    for part in parts:
        if some and (len(some) == _MOST_ACTIVITIES or size + len(part[1]) + 1 > most):
            yield some
            some, size = [], 2
        some.append(part)
        size += len(part[1]) + 1
    if some:
        yield some
