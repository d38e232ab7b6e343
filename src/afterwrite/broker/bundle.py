"""Activities of one lane in one message: the JSON array that a spool holds, too.

A message costs the brokers the same whether it holds one activity or hundreds: an entry in three logs, flushed. Its id
says exactly what is in it, so that the brokers' own de-duplication never takes a longer one for a shorter.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from afterwrite.broker.link import is_inbox
from afterwrite.broker.topology import lane_of
from afterwrite.record import Activity
from afterwrite.recorder.spool import Event, without_absent

MESSAGE_ID = "Nats-Msg-Id"
RECEIPT = "Afterwrite-Receipt"
_MOST_ACTIVITIES = 500
_MOST_BYTES = 256 << 10
# A receipt is asked for by such a name alone: what writers tell is no JSON, that a broker or a sink would obey.
_NAMED = re.compile(r"\S+/\w+", re.ASCII)
# What headers and the protocol's own line take of the longest message.
OVERHEAD_BYTES = 4 << 10

_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(list[Event])


class Bundle(msgspec.Struct, frozen=True, gc=False):
    """What goes as one message; its id is that of the one activity in it, of several one that only they give."""

    lane: int
    id: str
    body: bytes
    # Whether somebody waits until the store has all of it.
    receipt: bool


class _Part(NamedTuple):
    id: str
    body: bytes
    stored: bool


def bundle(activities: Iterable[Activity], *, longest: int) -> tuple[list[list[Bundle]], dict[str, str]]:
    """Rounds of messages, in a round at most one for each lane; and what is too long for any, with the reason, by id.

    Of a lane the next message is to be sent when the one before is acknowledged: so none overtakes another.
    """
    longest -= OVERHEAD_BYTES
    most = min(_MOST_BYTES, longest)
    refused: dict[str, str] = {}
    waiting: dict[int, list[_Part]] = {}
    for activity in activities:
        body = _encode(without_absent(activity))
        if len(body) + 2 > longest:
            refused[activity.id] = f"it is {len(body):,} bytes long, and the broker takes {longest:,}"
            continue
        waiting.setdefault(lane_of(activity), []).append(
            _Part(activity.id, body, isinstance(activity, Event) and activity.stored)
        )
    rounds: list[list[Bundle]] = []
    for lane, parts in waiting.items():
        for number, some in enumerate(_split(parts, most)):
            if number == len(rounds):
                rounds.append([])
            body = b"[" + b",".join(part.body for part in some) + b"]"
            receipt = any(part.stored for part in some)
            rounds[number].append(Bundle(lane, _name([part.id for part in some]), body, receipt))
    return rounds, refused


def _name(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else hashlib.sha256("".join(ids).encode()).hexdigest()[:40]


def unbundle(body: bytes) -> list[Event]:
    """The activities of a message; raises ValueError when it is none of ours."""
    try:
        events = _decoder.decode(body)
    except RecursionError as error:
        # To be met again by each writer, which would stand still before it.
        raise ValueError("it is nested too deeply to be read") from error
    for event in events:
        if not bytes(event.metadata):  # sinks know that as None
            msgspec.structs.force_setattr(event, "metadata", None)
    return events


def name_for_receipt(id: str, tail: str) -> str:
    """The name of a message whose sender waits for the store."""
    return f"{id}/{tail}"


def receipt_of(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Where somebody waits to hear that a message is stored, and what it is called there; None: nobody does.

    Whoever may publish writes these, and a writer says them with rights of its own: so it says nothing but such names,
    and nowhere but in inboxes.
    """
    inbox, name = inbox_of(headers), headers.get(MESSAGE_ID, "")
    return (inbox, name) if inbox is not None and _NAMED.fullmatch(name) else None


def inbox_of(headers: Mapping[str, str]) -> str | None:
    """Where whoever published waits; what is named beside inboxes is not spoken to with a writer's rights."""
    inbox = headers.get(RECEIPT, "")
    return inbox if is_inbox(inbox) else None


def _split(parts: Sequence[_Part], most: int) -> Iterable[list[_Part]]:
    some: list[_Part] = []
    size = 2
    for part in parts:
        if some and (len(some) == _MOST_ACTIVITIES or size + len(part.body) + 1 > most):
            yield some
            some, size = [], 2
        some.append(part)
        size += len(part.body) + 1
    if some:
        yield some
