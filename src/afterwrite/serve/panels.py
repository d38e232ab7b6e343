"""Health in words: each thing that may be well or not, what its figure means, and what to do. Pure."""

from __future__ import annotations

import msgspec

from afterwrite.capture.governor import human_bytes
from afterwrite.serve.health import Health, Slot
from afterwrite.serve.paper import lasting


class Panel(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that may be well or not: its figure, what it means, and what to do where it is not well."""

    name: str
    title: str
    state: str
    says: str
    figure: str
    note: str = ""
    means: str
    todo: str = ""
    run: str = ""
    share: float | None = None


def panels(health: Health) -> list[Panel]:
    """The panels in the order in which trouble spreads: from the source to the store. Pure."""
    return [
        _capture(health.slot),
        _budget(health.slot),
        _feed(health),
        _outbox(health),
        _deferral(health),
        _gaps(health),
        _days(health),
    ]


def _capture(slot: Slot | None) -> Panel:
    means = (
        "Capture reads the write-ahead log of the source. How far the store is behind it is how old the newest thing is"
        " that you see here."
    )
    if slot is None:
        return Panel(
            name="capture",
            title="Capture",
            state="off",
            says="not set up",
            figure="none",
            means=means,
            todo=(
                "Only what applications record is stored. To capture row changes as well, install it, then start "
                "the worker."
            ),
            run="afterwrite install --apply",
        )
    if slot.health == "gone":
        return Panel(
            name="capture",
            title="Capture",
            state="bad",
            says="the slot is gone",
            figure="lost",
            means=means,
            todo="Changes since then are missing, and more go missing every second. Installing again begins anew and"
            " writes down what was lost.",
            run="afterwrite install --apply",
        )
    behind = "not known" if slot.lag_bytes is None else "0 B" if not slot.lag_bytes else human_bytes(slot.lag_bytes)
    if not slot.active:
        return Panel(
            name="capture",
            title="Capture",
            state="warn",
            says="no worker",
            figure=behind,
            note="not stored yet",
            means=means,
            todo="Nobody reads the slot: nothing is lost, and nothing arrives. Start the worker.",
            run="afterwrite capture",
        )
    return Panel(
        name="capture",
        title="Capture",
        state="ok",
        says="at work",
        figure=behind,
        note="of WAL behind the source",
        means=means,
    )


def _budget(slot: Slot | None) -> Panel:
    means = (
        "Until a change is stored, the source keeps its WAL on its own disk for us. The budget is how much of that disk"
        " this may cost; what happens at its end is the setting over_budget."
    )
    if slot is None or slot.health == "gone":
        return Panel(name="wal", title="WAL kept for us", state="off", says="none", figure="none", means=means)
    share = slot.retained_bytes / slot.budget_bytes if slot.budget_bytes else 0.0
    state = {"well": "ok", "warn": "warn"}.get(slot.health, "bad")
    todo = (
        ""
        if state == "ok"
        else (
            "See whether the worker runs and the store takes what it sends; a burst of writes is caught up by itself."
            " With the setting wal_budget the budget can be raised, as far as the disk allows."
        )
    )
    return Panel(
        name="wal",
        title="WAL kept for us",
        state=state,
        says={"well": "within the budget", "warn": "more than the warning share", "alarm": "nearly used up"}.get(
            slot.health, "used up"
        ),
        figure=human_bytes(slot.retained_bytes),
        note=f"of {human_bytes(slot.budget_bytes)}, {slot.wal_status or 'status not known'}",
        means=means,
        todo=todo,
        run="" if state == "ok" else "afterwrite doctor",
        share=share,
    )


def _feed(health: Health) -> Panel:
    means = (
        "A batch is what one transaction of the store holds. Its position is its place in the feed, "
        "without gaps; its delay is from the commit in the source to the commit here."
    )
    recent = health.batches.recent
    if not recent:
        return Panel(
            name="feed",
            title="Batches",
            state="off",
            says="none yet",
            figure="0",
            means=means,
            todo="Nothing was ever stored. Start the worker, or record something with the library.",
            run="afterwrite capture",
        )
    half = sorted(each.delay_seconds for each in recent)[len(recent) // 2]
    age = (health.at - recent[0].written_at).total_seconds()
    return Panel(
        name="feed",
        title="Batches",
        state="ok",
        says="stored",
        figure=f"{health.batches.position:,}",
        note=f"the newest {lasting(max(0.0, age))} ago, "
        + (f"after {lasting(half)}" if len(recent) == 1 else f"half of the last {len(recent)} within {lasting(half)}"),
        means=means,
    )


def _outbox(health: Health) -> Panel:
    means = (
        "Where an application cannot reach the store it keeps what it recorded: in its spool, on its own "
        "machine (activity.stats() there tells of it), or in the outbox of its database, which is counted "
        "here."
    )
    outbox = health.outbox
    if outbox is None:
        return Panel(
            name="outbox",
            title="Spool and outbox",
            state="off",
            says="no outbox",
            figure="none",
            means=means,
            todo="None is laid"
            + (
                ", and none is needed where capture reads the WAL."
                if health.slot is not None
                else ". It takes the place of capture where the WAL cannot be read."
            ),
            run="" if health.slot is not None else "afterwrite outbox install --apply",
        )
    if outbox.refused:
        return Panel(
            name="outbox",
            title="Spool and outbox",
            state="bad",
            says="dead letters",
            figure=f"{outbox.refused:,}",
            note="could not be stored and are set aside",
            means=means,
            todo="Look what is wrong with them; nothing is thrown away by itself.",
            run="afterwrite outbox status",
        )
    old = outbox.oldest_seconds or 0.0
    late = old > 60
    return Panel(
        name="outbox",
        title="Spool and outbox",
        state="warn" if late else "ok",
        says="waiting" if late else "drained",
        figure=f"{outbox.waiting:,}",
        note=f"waiting, the oldest for {lasting(old)}" if outbox.waiting else "waiting",
        means=means,
        todo="Nobody drains the outbox. The worker does, and so does a drain of its own." if late else "",
        run="afterwrite capture" if late else "",
    )


def _deferral(health: Health) -> Panel:
    means = (
        "The body of a deferred trigger runs after the commit, exactly once and in order. A call that "
        "fails is a dead letter: it waits for somebody to run it again or to give it up."
    )
    deferral = health.deferral
    if deferral is None:
        return Panel(name="deferral", title="Deferred bodies", state="off", says="none", figure="none", means=means)
    if deferral.standing.trouble is not None:
        return Panel(
            name="deferral",
            title="Deferred bodies",
            state="bad",
            says="halted",
            figure=f"{deferral.lag.batches:,}",
            note="batches wait",
            means=means,
            todo=deferral.standing.trouble,
            run="afterwrite defer status",
        )
    if deferral.dead_letters:
        return Panel(
            name="deferral",
            title="Deferred bodies",
            state="warn",
            says="dead letters",
            figure=f"{deferral.dead_letters:,}",
            note="calls failed and wait",
            means=means,
            todo="See why, then run them again, or give them up.",
            run="afterwrite defer list",
        )
    return Panel(
        name="deferral",
        title="Deferred bodies",
        state="ok" if deferral.standing.running else "warn",
        says="at work" if deferral.standing.running else "nobody runs them",
        figure=f"{deferral.standing.calls:,}",
        note=f"calls so far; {lasting(deferral.lag.seconds)} behind the store",
        means=means,
        todo="" if deferral.standing.running else "The worker runs them beside capture.",
        run="" if deferral.standing.running else "afterwrite capture",
    )


def _gaps(health: Health) -> Panel:
    means = (
        "A gap is a stretch of the source's log that is known to be lost, with its bounds. Loss is never "
        "silent: what is not listed here was stored."
    )
    if not health.gaps:
        return Panel(name="gaps", title="Gaps", state="ok", says="nothing is lost", figure="0", means=means)
    open_ones = sum(each.open for each in health.gaps)
    return Panel(
        name="gaps",
        title="Gaps",
        state="bad" if open_ones else "warn",
        says="open" if open_ones else "closed",
        figure=f"{len(health.gaps):,}",
        note="listed below",
        means=means,
        todo=(
            "What lies inside is not here, and cannot be had again from the log; its bounds say where to look "
            "in a backup."
        ),
    )


def _days(health: Health) -> Panel:
    means = (
        "The store keeps a partition a day (UTC). Hot days carry every index; maintenance makes days "
        "ahead, and cools or drops old ones, as the settings hot_days and retention_days say."
    )
    rows = sum(each.rows for each in health.days)
    days = sum(each.rows > 0 for each in health.days)
    more = " …" if len(health.due) > 2 else ""
    size = "not known" if health.store_bytes is None else human_bytes(health.store_bytes)
    return Panel(
        name="days",
        title="Store",
        state="ok",
        says=f"{len(health.due)} {'step' if len(health.due) == 1 else 'steps'} of maintenance"
        if health.due
        else "in order",
        figure=size,
        note=f"some {rows:,} {'activity' if rows == 1 else 'activities'} in {days} {'day' if days == 1 else 'days'}",
        means=means,
        todo=f"The worker does it within minutes: {'; '.join(health.due[:2])}{more}. By hand:" if health.due else "",
        run="afterwrite maintain --apply" if health.due else "",
    )
