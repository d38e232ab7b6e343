"""Whether a broker is as it must be, so that what it acknowledges is not lost; and making it so.

What the stream and its consumers are, JetStream says to whoever may ask. Whether a server flushes before it
acknowledges only its monitoring says (``http_port``); where nobody names that, it cannot be seen.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from afterwrite.broker.link import Access, ApiError, Link, connect
from afterwrite.broker.topology import (
    DUPLICATE_SECONDS,
    Layout,
    changes_config,
    changes_stream,
    consumer_config,
    consumer_name,
    differences,
    lane_of_consumer,
    metadata_of,
    names,
    partitions_of,
    refused_subject,
    store_of,
    stream_config,
    subjects,
)
from afterwrite.errors import Finding, Refused, Severity, UsageError

_LEAST_REPLICAS = 3
_SECOND = 1_000_000_000
_LEAST_WINDOW_SECONDS = 30
_FULL_SHARE = 0.8
_MONITOR_SECONDS = 3.0
# A stream that is made waits until its brokers have chosen who leads it.
_DONE_SECONDS = 30.0
_STREAM_NOT_FOUND = 10059
_CONSUMER_NOT_FOUND = 10014
_INSTALL = "afterwrite broker install --apply"


class Monitored(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's monitoring says of it; ``trouble`` where it says nothing."""

    url: str
    server: str = ""
    version: str = ""
    sync_always: bool = False
    sync_seconds: float = 0.0
    trouble: str | None = None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the broker says of itself."""

    where: str
    stream: str
    version: tuple[int, int]
    config: dict[str, Any] | None = None
    state: dict[str, Any] = {}
    cluster: dict[str, Any] = {}
    consumers: tuple[dict[str, Any], ...] = ()
    # The stream of captured changes, where there is one.
    changes: dict[str, Any] | None = None
    changes_state: dict[str, Any] = {}
    changes_consumers: tuple[dict[str, Any], ...] = ()
    monitored: tuple[Monitored, ...] = ()


class Waits(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages wait for a writer, and whether there is one.

    A writer is pinned by its first message; until then it is one of those that are ``asking``.
    """

    waiting: int
    in_flight: int
    pinned: bool
    asking: int
    leader: str


class Standing(Waits, frozen=True, kw_only=True):
    """The same of a partition."""

    partition: int


class SourceStanding(Waits, frozen=True, kw_only=True):
    """The same of a source whose changes are captured."""

    source: str


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that makes the broker as it is to be; what JetStream is asked, and with what."""

    text: str
    subject: str
    question: dict[str, Any]


async def look(access: Access, monitors: Sequence[str] = ()) -> Seen:
    """Look at everything that can be seen, and touch nothing."""
    async with connect(access, name="afterwrite check") as link:
        seen = Seen(where=access.where, stream=access.stream, version=link.version)
        told = await _read_stream(link, access.stream, {"subjects_filter": refused_subject(access.stream)})
        if told is not None:
            seen = msgspec.structs.replace(
                seen,
                config=told["config"],
                state=told["state"],
                cluster=told.get("cluster") or {},
                consumers=tuple(await _read_consumers(link, access.stream)),
            )
        told = await _read_stream(link, changes_stream(access.stream))
        if told is not None:
            seen = msgspec.structs.replace(
                seen,
                changes=told["config"],
                changes_state=told["state"],
                changes_consumers=tuple(await _read_consumers(link, changes_stream(access.stream))),
            )
    monitored = await asyncio.gather(*(asyncio.to_thread(_read_monitor, url) for url in monitors))
    return msgspec.structs.replace(seen, monitored=tuple(monitored))


async def _read_stream(link: Link, stream: str, question: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the brokers say of a stream; None: there is none."""
    try:
        return await link.ask(f"STREAM.INFO.{stream}", question)
    except ApiError as error:
        if error.code != _STREAM_NOT_FOUND:
            raise
        return None


async def _read_consumers(link: Link, stream: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = await link.ask(f"CONSUMER.LIST.{stream}", {"offset": len(found)})
        consumers = cast("list[dict[str, Any]]", page.get("consumers") or [])
        found += consumers
        if not consumers or len(found) >= int(page["total"]):
            return found


def _read_monitor(url: str) -> Monitored:
    where = f"{url.rstrip('/')}/varz"
    if not where.startswith(("http://", "https://")):
        raise UsageError(f"{url} is no address of a monitoring", remedy="write it as http://broker-1.example.com:8222")
    try:
        with urllib.request.urlopen(where, timeout=_MONITOR_SECONDS) as answer:  # noqa: S310 - http and https alone
            told = cast("dict[str, Any]", json.load(answer))
        jetstream = cast("dict[str, Any]", told.get("jetstream") or {})
        config = cast("dict[str, Any]", jetstream.get("config") or {})
        return Monitored(
            url=url,
            server=str(told.get("server_name") or told.get("server_id") or ""),
            version=str(told.get("version", "")),
            sync_always=bool(config.get("sync_always")),
            sync_seconds=float(config.get("sync_interval", 0)) / _SECOND,
        )
    except (OSError, ValueError) as error:
        return Monitored(url=url, trouble=str(getattr(error, "reason", error)))


def standings(seen: Seen) -> list[Standing]:
    """How each partition stands, by its number."""
    found: list[Standing] = []
    for consumer in seen.consumers:
        prefix, _, number = str(consumer["name"]).rpartition("-")
        if prefix != "writer" or not number.isdecimal():
            continue
        found.append(Standing(partition=int(number), **_waits(consumer)))
    return sorted(found, key=lambda standing: standing.partition)


def source_standings(seen: Seen) -> list[SourceStanding]:
    """How each source stands whose changes are published, by its name."""
    return sorted(
        (
            SourceStanding(source=lane, **_waits(consumer))
            for consumer in seen.changes_consumers
            if (lane := lane_of_consumer(str(consumer["name"]))) is not None
        ),
        key=lambda standing: standing.source,
    )


def _waits(consumer: Mapping[str, Any]) -> dict[str, Any]:
    groups = cast("list[dict[str, Any]]", consumer.get("priority_groups") or [])
    cluster = cast("dict[str, Any]", consumer.get("cluster") or {})
    return {
        "waiting": int(consumer.get("num_pending", 0)) + int(consumer.get("num_ack_pending", 0)),
        "in_flight": int(consumer.get("num_ack_pending", 0)),
        "pinned": any(group.get("pinned_client_id") for group in groups),
        "asking": int(consumer.get("num_waiting", 0)),
        "leader": str(cluster.get("leader", "")),
    }


def judge(seen: Seen) -> list[Finding]:
    """What is unsafe, or cannot be seen."""
    if seen.version < (2, 11):
        return [
            _finding(
                seen, "broker.version", Severity.ERROR,
                f"nats-server {seen.version[0]}.{seen.version[1]} cannot pin a consumer to one writer",
                "use nats-server 2.11 or later",
            )
        ]  # fmt: skip
    if seen.config is None:
        return [_finding(seen, "broker.stream", Severity.ERROR, "there is no such stream", _INSTALL)]
    return [
        *_judge_stream(seen, seen.config),
        *_judge_cluster(seen),
        *_judge_consumers(seen),
        *_judge_changes(seen),
        *_judge_pauses(seen),
        *_judge_sync(seen),
    ]


def _judge_stream(seen: Seen, config: Mapping[str, Any]) -> list[Finding]:
    found: list[Finding] = []

    def say(rule: str, severity: Severity, text: str, remedy: str = _INSTALL) -> None:
        found.append(_finding(seen, rule, severity, text, remedy))

    again = "it cannot be altered: drain the stream, delete it, then " + _INSTALL
    replicas = int(config.get("num_replicas", 1))
    if replicas < _LEAST_REPLICAS:
        say(
            "broker.replicas", Severity.ERROR,
            f"it is kept by {replicas} of the brokers: what it has acknowledged is gone with "
            f"{'that one' if replicas == 1 else 'either'}, or cannot be had while one is down",
            f"{_INSTALL} --replicas 3",
        )  # fmt: skip
    if config.get("storage") != "file":
        say("broker.storage", Severity.ERROR, "it is kept in memory, and gone when its servers restart", again)
    if config.get("retention") != "workqueue":
        say("broker.retention", Severity.ERROR, "what is stored stays in it, until it is full", again)
    if config.get("discard") != "new":
        say("broker.discard", Severity.ERROR, "when it is full, it drops the oldest, which nobody may have stored")
    if config.get("max_age"):
        say(
            "broker.max_age", Severity.ERROR,
            f"what no writer has stored after {config['max_age'] / _SECOND:,.0f} s is dropped",
        )  # fmt: skip
    if int(config.get("max_msgs_per_subject", -1)) > 0:
        say("broker.max_msgs_per_subject", Severity.ERROR, "of a lane only so many are kept")
    if config.get("no_ack"):
        say("broker.no_ack", Severity.ERROR, "it acknowledges nothing, so that no spool ever empties", again)
    if config.get("persist_mode") == "async":
        say("broker.persist_mode", Severity.ERROR, "it acknowledges what no disk has", again)
    if config.get("compression", "none") != "none":
        say(
            "broker.compression", Severity.ERROR,
            f"it is compressed ({config['compression']}): a broker that was killed may not be able to read what it has",
        )  # fmt: skip
    if int(config.get("max_bytes", -1)) <= 0:
        say("broker.max_bytes", Severity.WARNING, "it has no limit: it fills the disk of its servers")
    elif int(seen.state.get("bytes", 0)) > _FULL_SHARE * int(config["max_bytes"]):
        share = 100 * int(seen.state["bytes"]) // int(config["max_bytes"])
        say(
            "broker.full", Severity.WARNING,
            f"it is {share} % full: from 100 % on, what is recorded waits in the applications' spools",
            "look whether writers run and the store is up; or a greater --max-bytes",
        )  # fmt: skip
    if int(config.get("duplicate_window", 0)) < _LEAST_WINDOW_SECONDS * _SECOND:
        say(
            "broker.duplicate_window", Severity.WARNING,
            f"it knows a message again for {int(config.get('duplicate_window', 0)) / _SECOND:,.0f} s only; what is "
            f"sent again later goes to the store, which knows it ({DUPLICATE_SECONDS} s are set at installation)",
        )  # fmt: skip
    if missing := set(subjects(seen.stream)) - set(cast("list[str]", config.get("subjects") or [])):
        say("broker.subjects", Severity.ERROR, f"it does not take {len(missing)} of its subjects: {min(missing)}")
    if store_of(config) is None:
        say(
            "broker.store", Severity.WARNING,
            "it does not say for which store it is: a writer of another one would take what is meant for this",
            f"{_INSTALL}, where the settings name the store",
        )  # fmt: skip
    if partitions_of(config) is None:
        say("broker.partitions", Severity.ERROR, "it does not say how many partitions it has")
    aside = cast("dict[str, int]", seen.state.get("subjects") or {}).get(refused_subject(seen.stream), 0)
    if aside:
        say(
            "broker.refused", Severity.WARNING, f"{aside:,} messages are set aside, which the store did not take",
            f"read them: nats stream view {seen.stream} --subject {refused_subject(seen.stream)}",
        )  # fmt: skip
    return found


def _judge_cluster(seen: Seen) -> list[Finding]:
    peers = cast("list[dict[str, Any]]", seen.cluster.get("replicas") or [])
    return [
        _finding(
            seen, "broker.replica", Severity.WARNING,
            f"its replica on {peer.get('name')} is {'away' if peer.get('offline') else 'behind'}: one more broker "
            "that fails, and nothing is taken",
            "look at that server",
        )
        for peer in peers
        if peer.get("offline") or (not peer.get("current") and int(peer.get("lag", 0)) > 1_000)
    ]  # fmt: skip


def _judge_consumers(seen: Seen) -> list[Finding]:
    partitions = partitions_of(seen.config or {})
    if partitions is None:
        return []
    by_name = {str(consumer["name"]): cast("dict[str, Any]", consumer["config"]) for consumer in seen.consumers}
    found: list[Finding] = []
    for number in range(partitions):
        wanted = consumer_config(seen.stream, number, partitions)
        config = by_name.pop(consumer_name(number), None)
        if config is None:
            # A writer that takes over makes it anew: for a moment it is away.
            found.append(
                _finding(
                    seen, "broker.consumer", Severity.WARNING, f"partition {number} has no consumer", _INSTALL
                )
            )  # fmt: skip
        elif other := differences(config, wanted):
            found.append(
                _finding(
                    seen, "broker.consumer", Severity.ERROR,
                    f"the consumer of partition {number} is not as it should be: {', '.join(sorted(other))}", _INSTALL,
                )
            )  # fmt: skip
    found += [
        _finding(
            seen, "broker.foreign", Severity.ERROR, f"a consumer that is not ours takes from it: {name}",
            f"delete it: nats consumer rm {seen.stream} {name}",
        )
        for name in sorted(by_name)
    ]  # fmt: skip
    return found


def _judge_changes(seen: Seen) -> list[Finding]:
    """The stream of captured changes: what it loses is in the WAL, so little of it can be unsafe."""
    config = seen.changes
    if config is None:
        return []
    found: list[Finding] = []
    name = changes_stream(seen.stream)
    wanted = changes_config(seen.stream, replicas=int(config.get("num_replicas", 1)), max_bytes=0)
    if other := [each for each in differences(config, wanted) if each not in ("max_bytes", "description")]:
        found.append(
            _finding(
                seen, "broker.changes", Severity.ERROR,
                f"the stream {name} is not as it should be, so that captures may wait for ever:"
                f" {', '.join(sorted(other))}",
                _INSTALL,
            )
        )  # fmt: skip
    most = int(config.get("max_bytes", -1))
    if most > 0 and int(seen.changes_state.get("bytes", 0)) > _FULL_SHARE * most:
        found.append(
            _finding(
                seen, "broker.changes_full", Severity.WARNING,
                f"the stream {name} is nearly full: captures wait, and the sources keep their WAL",
                "look whether writers run and the store is up; or a greater --changes",
            )
        )  # fmt: skip
    found += [
        _finding(
            seen, "broker.foreign", Severity.ERROR, f"a consumer that is not ours takes from {name}: {each['name']}",
            f"delete it: nats consumer rm {name} {each['name']}",
        )
        for each in seen.changes_consumers
        if lane_of_consumer(str(each["name"])) is None
    ]  # fmt: skip
    return found


def _judge_pauses(seen: Seen) -> list[Finding]:
    """Nobody of ours pauses a consumer; who stands by for it waits, and cannot tell why."""
    both = [(seen.stream, seen.consumers), (changes_stream(seen.stream), seen.changes_consumers)]
    return [
        _finding(
            seen, "broker.paused", Severity.WARNING,
            f"the consumer {each['name']} of {stream} is paused for another"
            f" {int(each.get('pause_remaining', 0)) / _SECOND:,.0f} s: what waits there is not written",
            f"nats consumer resume {stream} {each['name']}",
        )
        for stream, consumers in both
        for each in consumers
        if each.get("paused")
    ]  # fmt: skip


def _judge_sync(seen: Seen) -> list[Finding]:
    found: list[Finding] = []
    remedy = "set sync_interval: always in the jetstream block of its configuration, and restart it"
    for each in seen.monitored:
        if each.trouble is not None:
            found.append(
                _finding(
                    seen, "broker.monitor", Severity.WARNING, f"{each.url} does not answer: {each.trouble}",
                    "mend nats_monitor, or the server's http_port",
                )
            )  # fmt: skip
        elif not each.sync_always:
            found.append(
                _finding(
                    seen, "broker.sync", Severity.ERROR,
                    f"{each.server} acknowledges what its disk does not have, for up to {each.sync_seconds:,.0f} s: "
                    "when several machines crash together it is lost",
                    remedy,
                )
            )  # fmt: skip
    known = {each.server for each in seen.monitored if each.trouble is None}
    peers = cast("list[dict[str, Any]]", seen.cluster.get("replicas") or [])
    servers = {str(name) for name in (seen.cluster.get("leader"), *(peer.get("name") for peer in peers)) if name}
    unseen = sorted(servers - known) if servers else ([] if known else [seen.where])
    if unseen:
        found.append(
            _finding(
                seen, "broker.sync_unseen", Severity.WARNING,
                f"whether a broker flushes before it acknowledges cannot be seen: {', '.join(unseen)}",
                "name each broker's monitoring: --monitor http://…:8222, or nats_monitor",
            )
        )  # fmt: skip
    return found


def _finding(seen: Seen, rule: str, severity: Severity, text: str, remedy: str) -> Finding:
    return Finding(
        rule=rule, severity=severity, where=f"stream {seen.stream} at {seen.where}", text=text, remedy=remedy
    )


def plan(seen: Seen, layout: Layout) -> list[Step]:
    """What is to be done so that the broker is as the layout says. Raises Refused where that would lose something."""
    wanted = stream_config(layout)
    steps: list[Step] = []
    if seen.config is None:
        steps.append(
            Step(
                text=f"make the stream {layout.stream}: {layout.partitions} partitions, {layout.replicas} replicas",
                subject=f"STREAM.CREATE.{layout.stream}",
                question=wanted,
            )
        )
    else:
        other = differences(seen.config, wanted)
        if partitions_of(seen.config) != layout.partitions:
            other.append("partitions")
        if layout.store is not None and store_of(seen.config) != layout.store:
            other.append("the store that it is for")
        for fixed in ("storage", "retention"):
            if fixed in other:
                raise Refused(
                    f"the {fixed} of the stream {layout.stream} is {seen.config.get(fixed)}, and cannot be altered",
                    remedy="drain and delete it, or name another one: nats_stream",
                )
        if other:
            metadata = {**metadata_of(seen.config), **wanted["metadata"]}
            kept = {name: value for name, value in metadata.items() if not name.startswith("_nats.")}
            steps.append(
                Step(
                    text=f"alter the stream {layout.stream}: {', '.join(sorted(other))}",
                    subject=f"STREAM.UPDATE.{layout.stream}",
                    question={**seen.config, **wanted, "metadata": kept},
                )
            )
    steps += _plan_changes(seen, layout)
    by_name = {str(consumer["name"]): cast("dict[str, Any]", consumer["config"]) for consumer in seen.consumers}
    configs = [consumer_config(layout.stream, number, layout.partitions) for number in range(layout.partitions)]
    due = [
        config
        for config in configs
        if config["name"] not in by_name or differences(by_name[config["name"]], config)
    ]  # fmt: skip
    gone = {name for name in by_name if name.startswith("writer-")} - {str(config["name"]) for config in configs}
    gone |= {str(config["name"]) for config in due} & names(seen.consumers)
    # First all that goes: two consumers of one lane cannot be.
    steps += [
        Step(
            text=f"delete the consumer {name}, which is for other lanes",
            subject=f"CONSUMER.DELETE.{layout.stream}.{name}",
            question={},
        )
        for name in sorted(gone)
    ]
    steps += [
        Step(
            text=f"make the consumer {config['name']}",
            subject=f"CONSUMER.CREATE.{layout.stream}.{config['name']}",
            question={"stream_name": layout.stream, "config": config, "action": "create"},
        )
        for config in due
    ]
    return steps


def _plan_changes(seen: Seen, layout: Layout) -> list[Step]:
    if layout.changes_bytes is None:
        return []
    name = changes_stream(layout.stream)
    wanted = changes_config(layout.stream, replicas=layout.replicas, max_bytes=layout.changes_bytes)
    if seen.changes is None:
        return [
            Step(text=f"make the stream {name} for captured changes", subject=f"STREAM.CREATE.{name}", question=wanted)
        ]
    other = differences(seen.changes, wanted)
    for fixed in ("storage", "retention"):
        if fixed in other:
            raise Refused(
                f"the {fixed} of the stream {name} is {seen.changes.get(fixed)}, and cannot be altered",
                remedy=f"delete it, no change is lost: nats stream rm {name}",
            )
    if not other:
        return []
    return [
        Step(
            text=f"alter the stream {name}: {', '.join(sorted(other))}",
            subject=f"STREAM.UPDATE.{name}",
            question={**seen.changes, **wanted},
        )
    ]


async def carry_out(access: Access, steps: Sequence[Step]) -> None:
    """Do it."""
    async with connect(access, name="afterwrite install") as link:
        for step in steps:
            try:
                await link.ask(step.subject, step.question, seconds=_DONE_SECONDS)
            except ApiError as error:
                # A writer that was at it has made it, or taken it away.
                if step.subject.startswith("CONSUMER.DELETE.") and error.code == _CONSUMER_NOT_FOUND:
                    continue
                remedy = error.remedy
                if "insufficient storage" in error.said:
                    remedy = "ask for less with --max-bytes, or give JetStream more room on the brokers: max_file_store"
                raise ApiError(f"{error.said} ({step.text})", code=error.code, remedy=remedy) from error


def layout_of(
    seen: Seen,
    *,
    partitions: int | None,
    replicas: int | None,
    max_bytes: int | None,
    changes_bytes: int | None = None,
    store: str | None = None,
    another_store: bool = False,
) -> Layout:
    """The layout that is wanted: what was said, else what stands, else the defaults.

    Raises Refused where the stream is for another store than this, unless it is to be for ``another_store``.
    """
    there = None if seen.config is None else store_of(seen.config)
    if store and there and there != store and not another_store:
        raise Refused(
            f"the stream {seen.stream} at {seen.where} is for the store {there}, and this one is {store}",
            remedy="name another stream for this store (nats_stream); or --another-store, and the writers of that one"
            " take nothing from then on",
        )
    words: dict[str, int] = {}
    if seen.config is not None:
        words["replicas"] = int(seen.config.get("num_replicas", 1))
        if (partitioned := partitions_of(seen.config)) is not None:
            words["partitions"] = partitioned
        if int(seen.config.get("max_bytes", -1)) > 0:
            words["max_bytes"] = int(seen.config["max_bytes"])
    if seen.changes is not None and int(seen.changes.get("max_bytes", -1)) > 0:
        words["changes_bytes"] = int(seen.changes["max_bytes"])
    told = {"partitions": partitions, "replicas": replicas, "max_bytes": max_bytes, "changes_bytes": changes_bytes}
    for name, value in told.items():
        if value is not None:
            words[name] = value
    return Layout(stream=seen.stream, store=store or there, **words)
