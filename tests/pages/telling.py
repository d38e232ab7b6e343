"""What an application did over two weeks, as activities: the same for tests and pictures, from a seed."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec

from afterwrite.postgres import connect
from afterwrite.record import Activity, Batch, Checkpoint, Kind, Level, Lsn, Operation, Outcome, change_id
from afterwrite.store.schema import install_store
from afterwrite.store.writer import open_sink

PEOPLE = (
    "anna.berg@meridian.io",
    "jonas.keller@meridian.io",
    "priya.nair@meridian.io",
    "marco.rossi@meridian.io",
    "lea.dubois@meridian.io",
    "tom.okafor@meridian.io",
    "sofia.lind@meridian.io",
    "user:1042",
    "user:1077",
    "user:2210",
)
_PROJECTS = ("Harbour Wind", "Solar Farm Öland", "Green Bond II", "Rail Corridor East", "Tidal Array")
_PLANS = ("free", "pro", "team", "enterprise")
_STATES = ("draft", "submitted", "approved", "settled")
_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/131.0 Safari/537.36"
SYSTEM_ID = "7300000000000000001"

# What somebody may try to smuggle into a page, in every field that a client of the application can fill.
PAYLOADS = (
    "<script>window.__owned=1</script>",
    "\"><img src=x onerror='window.__owned=2'>",
    "javascript:window.__owned=3//",
    "</template></title><svg/onload=window.__owned=4>",
    "{{ 7*7 }}${window.__owned=5}",
    "' onmouseover='window.__owned=6' x='\u202egnp.exe",
)


class Teller:
    """Makes activities in the order of time; ``at`` is the moment of the next one."""

    def __init__(self, seed: int, at: datetime, *, lsn: int = 0x16_0000_0000) -> None:
        self.at = at
        self._random = random.Random(seed)
        self._lsn = lsn
        self._xid = 71_000

    def event(self, action: str, category: str, **more: object) -> Activity:
        """Something that the application recorded."""
        number = self._random.getrandbits(74)
        millisecond = int(self.at.timestamp() * 1000)
        value = millisecond << 80 | 7 << 76 | (number >> 62) << 64 | 2 << 62 | number & ((1 << 62) - 1)
        return Activity(
            id=str(UUID(int=value)),
            occurred_at=self.at,
            source="app",
            kind=Kind.EVENT,
            category=category,
            action=action,
            **more,
        )

    def transaction(self, actor: str | None, *changes: dict[str, object], cause: str | None = None) -> list[Activity]:
        """A transaction of the source, as capture stores it."""
        self._lsn += 0x80 + self._random.randrange(64) * 8
        self._xid += 1
        made: list[Activity] = []
        for ordinal, change in enumerate(changes):
            operation = Operation(str(change["operation"]))
            before, after = (change.get(side) for side in ("before", "after"))
            names = [name for name in (after or {}) if before and before.get(name) != after.get(name)]  # type: ignore[union-attr]
            made.append(
                Activity(
                    id=change_id(SYSTEM_ID, 1, Lsn(self._lsn), ordinal, self.at),
                    occurred_at=self.at,
                    source="billing",
                    kind=Kind.CHANGE,
                    category="data",
                    action=f"{change['table']}.{operation.value}",
                    entity_type=str(change["table"]),
                    entity_id=str(change["key"]),
                    actor_id=actor,
                    actor_type="user" if actor else None,
                    tenant_id="meridian",
                    request_id=f"req-{self._xid:x}" if actor else None,
                    summary=f"{operation.value} {change['table']} {change['key']}: {_said(names, before, after)}",
                    relation=f"public.{change['table']}",
                    operation=operation,
                    changed=tuple(names) if operation is Operation.UPDATE else None,
                    before=None if before is None else msgspec.Raw(msgspec.json.encode(before)),
                    after=None if after is None else msgspec.Raw(msgspec.json.encode(after)),
                    caused_by=cause,
                    xid=self._xid,
                    commit_lsn=Lsn(self._lsn),
                    ordinal=ordinal,
                )
            )
        return made

    def life(self) -> Iterator[list[Activity]]:
        """One thing after the other, for ever: each list is a transaction, or an event."""
        some = self._random
        projects: dict[int, dict[str, object]] = {}
        while True:
            actor = some.choices(PEOPLE, weights=[9, 7, 6, 5, 4, 3, 3, 8, 5, 2])[0]
            who = {
                "actor_id": actor,
                "actor_type": "user",
                "tenant_id": "meridian",
                "user_agent": _AGENT,
                "ip": f"10.4.{some.randrange(4)}.{some.randrange(2, 250)}",
                "session_id": f"s-{some.getrandbits(32):08x}",
            }
            kind = some.random()
            if kind < 0.16:
                wrong = some.random() < 0.2
                yield [
                    self.event(
                        "auth.login",
                        "authentication",
                        entity_type="users",
                        entity_id=actor,
                        outcome=Outcome.FAILURE if wrong else Outcome.SUCCESS,
                        severity=Level.WARNING if wrong else Level.INFO,
                        summary=f"Login of {actor} {'refused: wrong password' if wrong else 'with password'}",
                        **who,
                    )
                ]
            elif kind < 0.26:
                number = some.randrange(4000, 4200)
                failed = some.random() < 0.06
                yield [
                    self.event(
                        "invoice.send",
                        "communication",
                        entity_type="invoices",
                        entity_id=str(number),
                        outcome=Outcome.FAILURE if failed else Outcome.SUCCESS,
                        severity=Level.ERROR if failed else Level.INFO,
                        summary=f"Invoice {number} could not be sent: mailbox full"
                        if failed
                        else f"Invoice {number} sent to accounting@meridian.io",
                        duration_ms=some.uniform(40, 900),
                        metadata=msgspec.Raw(msgspec.json.encode({"channel": "email", "attempt": 1 + failed})),
                        **who,
                    )
                ]
            elif kind < 0.34:
                yield [
                    self.event(
                        "report.exported",
                        "document",
                        entity_type="reports",
                        entity_id=str(some.randrange(20, 44)),
                        summary=f"Quarterly report exported as {some.choice(['PDF', 'XLSX'])}",
                        duration_ms=some.uniform(300, 2400),
                        **who,
                    )
                ]
            elif kind < 0.52:
                key = some.randrange(1, 60)
                if key not in projects:
                    after: dict[str, object] = {
                        "id": key,
                        "name": f"{some.choice(_PROJECTS)} {key}",
                        "status": "draft",
                        "budget": 10_000 * some.randrange(4, 90),
                        "owner": actor,
                        "notes": None,
                    }
                    projects[key] = after
                    yield self.transaction(
                        actor, {"table": "projects", "operation": "insert", "key": key, "after": after}
                    )
                else:
                    before = projects[key]
                    after = {
                        **before,
                        "status": some.choice(_STATES),
                        "budget": int(before["budget"]) + 500 * some.randrange(-9, 20),
                        "notes": some.choice([None, "checked by finance", "waits for the board"]),
                    }  # type: ignore[call-overload]
                    projects[key] = after
                    yield self.transaction(
                        actor,
                        {"table": "projects", "operation": "update", "key": key, "before": before, "after": after},
                    )
            elif kind < 0.72:
                token, wallet = some.randrange(300, 420), some.randrange(1, 90)
                amount = some.randrange(1, 40) * 250
                cause = self.event(
                    "redemption.approved",
                    "financial",
                    entity_type="tokens",
                    entity_id=str(token),
                    **who,
                    summary=f"Redemption of {amount:,} gold tokens approved",
                    severity=Level.INFO,
                    duration_ms=some.uniform(8, 60),
                    metadata=msgspec.Raw(
                        msgspec.json.encode({"reason": "customer asked by phone", "amount": amount, "currency": "EUR"})
                    ),
                )
                yield [cause]
                yield self.transaction(
                    actor,
                    {
                        "table": "tokens",
                        "operation": "update",
                        "key": token,
                        "before": {"id": token, "state": "held", "amount": amount},
                        "after": {"id": token, "state": "redeemed", "amount": 0},
                    },
                    {
                        "table": "wallets",
                        "operation": "update",
                        "key": wallet,
                        "before": {"id": wallet, "balance": 90_000},
                        "after": {"id": wallet, "balance": 90_000 + amount},
                    },
                    {
                        "table": "ledger_entries",
                        "operation": "insert",
                        "key": self._xid,
                        "after": {"id": self._xid, "token": token, "wallet": wallet, "amount": amount},
                    },
                    cause=cause.id,
                )
            elif kind < 0.9:
                key = some.randrange(1000, 1100)
                plan = some.choice(_PLANS)
                yield self.transaction(
                    None if some.random() < 0.3 else actor,
                    {
                        "table": "users",
                        "operation": "update",
                        "key": key,
                        "before": {
                            "id": key,
                            "email": f"user{key}@example.org",
                            "plan": some.choice(_PLANS),
                            "last_seen": None,
                        },
                        "after": {
                            "id": key,
                            "email": f"user{key}@example.org",
                            "plan": plan,
                            "last_seen": self.at.isoformat(),
                        },
                    },
                )
            elif kind < 0.96:
                key = some.randrange(10_000, 10_900)
                yield self.transaction(
                    actor,
                    {
                        "table": "notifications",
                        "operation": "delete",
                        "key": key,
                        "before": {"id": key, "body": "Your invoice is ready", "read": True},
                    },
                )
            else:
                yield [
                    self.event(
                        "import.finished",
                        "bulk",
                        summary=f"Import of {some.randrange(200, 9000):,} investors finished",
                        duration_ms=some.uniform(4_000, 60_000),
                        actor_id="system",
                        actor_type="system",
                        tenant_id="meridian",
                        metadata=msgspec.Raw(
                            msgspec.json.encode({"file": "investors.csv", "skipped": some.randrange(12)})
                        ),
                    )
                ]


def _said(names: list[str], before: Any, after: Any) -> str:
    """A change in brief, as capture says it."""
    if names:
        return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in names)
    return ", ".join(str(value) for value in (after or before).values() if isinstance(value, str))


def tell(count: int, *, until: datetime | None = None, days: int = 16, seed: int = 7) -> list[list[Activity]]:
    """Some ``count`` activities of the last days, busier by day than by night, and through the weekend."""
    end = until or datetime.now(UTC)
    hours = [end - timedelta(hours=hour) for hour in range(24 * days, 0, -1)]
    weights = [_busy(each) for each in hours]
    teller = Teller(seed, hours[0])
    life = teller.life()
    made: list[list[Activity]] = []
    some = random.Random(seed)
    stored = 0
    for hour, weight in zip(hours, weights, strict=True):
        moments = sorted(some.random() for _ in range(round(count * weight / sum(weights) / _together(seed))))
        for moment in moments:
            teller.at = (hour + timedelta(hours=moment)).replace(microsecond=some.randrange(1_000_000))
            if teller.at >= end or stored >= count:
                break
            made.append(next(life))
            stored += len(made[-1])
    while stored < count:
        teller.at = end - timedelta(seconds=some.uniform(1, 900))
        made.append(next(life))
        stored += len(made[-1])
    return sorted(made, key=lambda together: together[0].occurred_at)


def _together(seed: int) -> float:
    """How many activities one thing of that life is."""
    life = Teller(seed, datetime.now(UTC)).life()
    return sum(len(next(life)) for _ in range(400)) / 400


def _busy(hour: datetime) -> float:
    day = 0.3 if hour.weekday() >= 5 else 1.0
    return day * (
        0.12 + math.exp(-(((hour.hour - 11) / 3.2) ** 2)) + 0.7 * math.exp(-(((hour.hour - 15.5) / 2.6) ** 2))
    )


def hostile(at: datetime) -> list[list[Activity]]:
    """An event and a change for each payload, which stands in every field that is text."""
    teller = Teller(99, at)
    made: list[list[Activity]] = []
    for payload in PAYLOADS:
        teller.at += timedelta(milliseconds=5)
        event = teller.event(
            payload,
            payload,
            entity_type=payload,
            entity_id=payload,
            actor_id=payload,
            actor_type=payload,
            tenant_id=payload,
            session_id=payload,
            request_id=payload,
            trace_id=payload,
            user_agent=payload,
            summary=payload,
            metadata=msgspec.Raw(msgspec.json.encode({payload: payload, "reason": payload})),
        )
        made.append([event])
        row = {payload: payload, "id": payload}
        [change] = teller.transaction(
            payload,
            {
                "table": "x",
                "operation": "update",
                "key": payload,
                "before": row,
                "after": {**row, payload: payload * 2},
            },
            cause=event.id,
        )
        made.append(
            [msgspec.structs.replace(change, entity_type=payload, relation=payload, source=payload, action=payload)]
        )
    return made


async def fill(dsn: str, told: list[list[Activity]], *, at_once: int = 2_000) -> None:
    """Store them as the worker and the recorder do: through the sink, in batches, with a checkpoint."""
    async with connect(dsn) as db:
        await install_store(db)
    async with open_sink(dsn) as sink:
        for source in sorted({each.source for together in told for each in together}):
            waiting: list[Activity] = []
            for together in [*told, []]:
                waiting += [each for each in together if each.source == source]
                if waiting and (len(waiting) >= at_once or not together):
                    await sink.write(_batch(source, waiting))
                    waiting = []


def _batch(source: str, rows: list[Activity]) -> Batch:
    lsns = [each.commit_lsn for each in rows if each.commit_lsn is not None]
    if not lsns:
        return Batch(source=source, activities=rows, transactions=0)
    return Batch(
        source=source,
        activities=rows,
        transactions=len(set(lsns)),
        first_lsn=lsns[0],
        last_lsn=lsns[-1],
        checkpoint=Checkpoint(source=source, slot="billing", system_id=SYSTEM_ID, timeline=1, lsn=Lsn(lsns[-1] + 8)),
    )
