"""What must follow from a row change in the legacy application: the author's knowledge of its triggers, table by table.

Written from what the triggers are meant to do, not read from them, so that it can bear witness against them. Two kinds
of things follow. Row changes made by the rules that stay (a balance) belong to the transaction itself. Effects of the
activity triggers are facts that must be true in the end, whether a trigger or a deferred body brings them about.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from afterwrite.demo.ledger import Copy, Count, Effect, Notice, Progress, RowChange
from afterwrite.record import Operation

Row = Mapping[str, Any]

# Primary keys that are not simply (id).
_KEYS: Mapping[str, tuple[str, ...]] = {
    "wallet_transactions": ("id", "wallet_id"),
    "project_settings": ("project_id",),
}

# What a DELETE drags along through foreign keys: (child, column, what happens to the child).
CASCADES: Mapping[str, Sequence[tuple[str, str, Operation]]] = {
    "projects": [("project_settings", "project_id", Operation.DELETE)],
    "users": [("notifications", "user_id", Operation.DELETE)],
    "investor_groups": [("investors", "group_id", Operation.UPDATE)],
}


class Facts(msgspec.Struct, frozen=True):
    """Relations that never change once they are made: whose project, whose investor profile, which project's token."""

    owner_of: dict[str, str]
    user_of: dict[str, str]
    project_of: dict[str, str]


def key_columns(table: str) -> tuple[str, ...]:
    return _KEYS.get(table, ("id",))


def key_of(table: str, row: Row) -> str:
    """The primary key's values, joined as the store joins them."""
    return ",".join(str(row[column]) for column in key_columns(table))


def rewritten(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as the BEFORE triggers let them through."""
    through = dict(values)
    if table == "investors":
        if "email" in through:
            through["email"] = through["email"].strip().lower()
        if through.get("country"):
            through["country"] = through["country"].upper()
    return through


def consequences(table: str, old: Row | None, new: Row | None, facts: Facts) -> Iterator[RowChange | Effect]:
    """What follows from one INSERT (no ``old``), UPDATE or DELETE (no ``new``) of this table."""
    step = int(new is not None) - int(old is not None)
    row = new or old
    if row is None:
        return
    key = key_of(table, row)
    match table:
        case "users" | "projects" | "token_operations":
            yield Count(f"{table}_total", Decimal(step))
            if table == "projects" and old and new and old["name"] != new["name"]:
                yield Copy(key)
        case "investors":
            yield Count("investors_total", Decimal(step))
            if step == 1 and row["bulk_operation_id"]:
                yield Progress(str(row["bulk_operation_id"]), rows=1, statements=0)
        case "subscriptions":
            yield Count("subscriptions_total", Decimal(step))
            yield Count("subscribed_amount", _amount(new) - _amount(old))
            yield Count("confirmed_amount", _amount(new, "confirmed") - _amount(old, "confirmed"))
            if step == 1:
                yield Notice(facts.owner_of[str(row["project_id"])], "subscription.received", key)
            elif old and new and old["status"] != new["status"]:
                yield from _to_investor(facts, row, f"subscription.{new['status']}", key)
        case "investments":
            yield Count("investments_total", Decimal(step))
            yield Count("invested_amount", _amount(new) - _amount(old))
        case "wallet_transactions":
            if _signed(new) != _signed(old):
                yield RowChange("wallets", Operation.UPDATE, str(row["wallet_id"]))
            if step == 1:
                yield Count("wallet_transactions_total", Decimal(1))
                yield Count("wallet_volume", _amount(new))
        case "token_allocations":
            if _amount(new) != _amount(old):
                yield RowChange("tokens", Operation.UPDATE, str(row["token_id"]))
            if step == 1:
                yield from _to_investor(facts, row, "allocation.made", key)
        case "distributions":
            if old and new and new["status"] == "paid" != old["status"]:
                yield from _to_investor(facts, row, "distribution.paid", key)
        case "redemptions":
            if step == 1:
                owner = facts.owner_of[facts.project_of[str(row["token_id"])]]
                yield Notice(owner, f"redemption.{row['status']}", key)
            elif old and new and old["status"] != new["status"]:
                yield from _to_investor(facts, row, f"redemption.{new['status']}", key)
        case "documents":
            if step == 1 and row["kind"] in ("contract", "prospectus"):
                yield Notice(facts.owner_of[str(row["project_id"])], "document.uploaded", key)
        case "notifications":
            if step:
                yield Notice(str(row["user_id"]), row["kind"], row["reference_id"], step, own=True)
        case _:
            pass  # nothing follows: tokens, templates, groups, wallets, settings and bulk operations themselves


def import_finished(operation: Row, imported: int) -> Iterator[Effect]:
    """The notice to whoever started an import, once every row of it is processed or failed."""
    total = operation["total_rows"]
    if total and imported + operation["failed_rows"] >= total:
        yield Notice(str(operation["initiated_by"]), "bulk.finished", str(operation["id"]))


def summed(effects: Iterable[Effect]) -> list[Effect]:
    """The same facts, with the counts of one counter and the progress of one operation added up."""
    counts: dict[str, Decimal] = {}
    progress: dict[str, tuple[int, int]] = {}
    rest: list[Effect] = []
    for effect in effects:
        match effect:
            case Count(counter, delta):
                counts[counter] = counts.get(counter, Decimal(0)) + delta
            case Progress(operation, rows, statements):
                done, said = progress.get(operation, (0, 0))
                progress[operation] = (done + rows, said + statements)
            case Notice() | Copy():
                rest.append(effect)
    moved = [Count(counter, delta) for counter, delta in counts.items() if delta]
    return [*rest, *moved, *(Progress(operation, rows, said) for operation, (rows, said) in progress.items())]


def of_one_statement(effects: Iterable[Effect]) -> list[Effect]:
    """The facts of one statement's rows: a statement-level trigger advances an operation once for all of them."""
    return [
        Progress(effect.operation, effect.rows, statements=1) if isinstance(effect, Progress) else effect
        for effect in summed(effects)
    ]


def _to_investor(facts: Facts, row: Row, kind: str, reference: str) -> Iterator[Effect]:
    user = facts.user_of.get(str(row["investor_id"]))
    if user:
        yield Notice(user, kind, reference)


def _amount(row: Row | None, status: str | None = None) -> Decimal:
    if row is None or (status and row["status"] != status):
        return Decimal(0)
    return Decimal(row["amount"])


def _signed(row: Row | None) -> Decimal:
    amount = _amount(row)
    return -amount if row and row["direction"] == "debit" else amount
