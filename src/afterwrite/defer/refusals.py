"""What speaks against deferring a trigger: what cannot be done after commit, and what will differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from psycopg import sql

from afterwrite.defer.clock import CLOCK
from afterwrite.defer.transplant import TABLE_WORDS, TableShape
from afterwrite.errors import Finding, Severity
from afterwrite.scan.catalog import Enabled, Event, Timing, Trigger, TriggerLevel
from afterwrite.scan.tokens import Token, tokens, unquote

_SYSTEM_COLUMNS = frozenset({"ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"})
_VARIABLES = TABLE_WORDS | {
    "new",
    "old",
    "found",
    "tg_op",
    "tg_name",
    "tg_when",
    "tg_level",
    "tg_nargs",
    "tg_argv",
}
_SESSION_WORDS = frozenset(
    {
        "session_user",
        "current_query",
        "txid_current",
        "pg_current_xact_id",
        "pg_backend_pid",
        "inet_client_addr",
        "inet_client_port",
    }
)
_ROLE_WORDS = frozenset({"current_user", "current_role", "user"})


def refusals(trigger: Trigger, table: TableShape | None = None) -> list[Finding]:
    """What speaks against deferring this trigger. ERROR forbids it; WARNING and INFO name what will differ.

    With ``table`` also what depends on the table as it is now. The body is read word by word, strings that it executes
    included; what the functions that it calls do is not seen.
    """
    return [*_of_the_trigger(trigger), *_of_the_body(trigger), *(_of_the_table(trigger, table) if table else ())]


def _found(trigger: Trigger, rule: str, severity: Severity, text: str, remedy: str | None = None) -> Finding:
    return Finding(
        rule=f"defer.{rule}",
        severity=severity,
        where=trigger.identity,
        text=f"trigger {trigger.identity} {text}",
        remedy=remedy or (_KEEP if severity is Severity.ERROR else None),
    )


_KEEP = 'keep it: give it mode = "keep" in the plan, or change its function'


def _of_the_trigger(trigger: Trigger) -> Iterator[Finding]:
    if trigger.timing is not Timing.AFTER:
        yield _found(
            trigger,
            "timing",
            Severity.ERROR,
            f"fires {trigger.timing.value}: what it does to the write cannot come later",
        )
    if trigger.language != "plpgsql":
        yield _found(trigger, "language", Severity.ERROR, f"runs a function in {trigger.language}, not in plpgsql")
    if trigger.extension:
        yield _found(trigger, "extension", Severity.ERROR, f"belongs to extension {trigger.extension}")
    if trigger.parent_oid:
        yield _found(
            trigger,
            "clone",
            Severity.ERROR,
            "is the copy on a partition of its parent's trigger",
            "defer the trigger of the partitioned table",
        )
    if trigger.enabled is Enabled.REPLICA:
        yield _found(
            trigger,
            "replica-only",
            Severity.ERROR,
            "fires for replicated writes only, which look like others in the WAL",
        )
    if trigger.enabled is Enabled.DISABLED:
        yield _found(trigger, "disabled", Severity.WARNING, "is off, and its body would run")
    if trigger.columns:
        yield _found(
            trigger,
            "update-of",
            Severity.INFO,
            f"fires when an UPDATE names {', '.join(trigger.columns)}: the SET list is not in the WAL, "  # noqa: S608
            "so it will run when one of them changed, not when it was assigned the value it had",
        )
    if trigger.level is TriggerLevel.STATEMENT:
        yield _found(
            trigger,
            "statement",
            Severity.WARNING,
            "fires once a statement: where a statement ended is not in the WAL, so it will run once a transaction and "
            "operation, with all rows of that transaction, and not for statements that touched no row",
        )


def _of_the_body(trigger: Trigger) -> Iterator[Finding]:
    body = list(tokens(trigger.source))
    if "execute" in _words(body):
        body += [token for text in body if text.kind == "string" for token in tokens(text.text.strip("'"))]
        yield _found(
            trigger,
            "dynamic",
            Severity.INFO,
            "puts SQL together and executes it: in there now() is the original time, CURRENT_TIMESTAMP that of the run",
        )
    condition = list(tokens(trigger.when or ""))
    words = _words(body)
    if "pg_trigger_depth" in words | _words(condition):
        yield _found(trigger, "depth", Severity.ERROR, "asks pg_trigger_depth(), which is another after commit")
    for first, second in sorted({*_dotted(body), *_dotted(condition)}):
        if first == trigger.function and second in _VARIABLES:
            yield _found(
                trigger,
                "self-name",
                Severity.ERROR,
                f"calls its variable by the name of its function ({first}.{second})",
                f"write {second} alone",
            )
        if first in ("new", "old") and second in _SYSTEM_COLUMNS:
            yield _found(trigger, "system-column", Severity.ERROR, f"reads {first}.{second}, which is not in the WAL")
    if said := sorted(words & _SESSION_WORDS):
        yield _found(
            trigger, "session", Severity.WARNING, f"asks {', '.join(said)}: the answer will be the replayer's session's"
        )
    if not trigger.security_definer and (said := sorted(words & _ROLE_WORDS)):
        yield _found(
            trigger, "role", Severity.WARNING, f"asks {', '.join(said)}: the answer will be the replayer's role"
        )


def _words(listed: Iterable[Token]) -> set[str]:
    return {token.text.lower() for token in listed if token.kind == "word"}


def _dotted(listed: Sequence[Token]) -> Iterator[tuple[str, str]]:
    for first, dot, second in zip(listed, listed[1:], listed[2:], strict=False):
        if dot.text == ".":
            yield unquote(first.text), unquote(second.text)


def _of_the_table(trigger: Trigger, table: TableShape) -> Iterator[Finding]:
    relation = sql.Identifier(table.schema, table.name).as_string()
    words = _words(tokens(trigger.source))
    if table.kind not in ("r", "p"):
        yield _found(trigger, "no-wal", Severity.ERROR, "is not on a table, so that its rows are not in the WAL")
    if table.persistence != "p":
        yield _found(
            trigger,
            "no-wal",
            Severity.ERROR,
            "is on an unlogged or temporary table, whose rows are not in the WAL",
            f"ALTER TABLE {relation} SET LOGGED, or keep the trigger",
        )
    if table.is_partition:
        yield _found(
            trigger,
            "leaf",
            Severity.ERROR,
            "is on one partition: the stream tells changes by the partitioned table",
            "put the trigger on the partitioned table, or keep it",
        )
    if {Event.UPDATE, Event.DELETE} & set(trigger.events) and table.replica_identity != "f":
        yield _found(
            trigger,
            "replica-identity",
            Severity.ERROR,
            "needs the whole old row, and its table does not log it",
            f"ALTER TABLE {relation} REPLICA IDENTITY FULL",
        )
    if table.kind == "p" and (said := sorted(words & TABLE_WORDS)):
        yield _found(
            trigger,
            "partition-name",
            Severity.INFO,
            f"asks {', '.join(said)}, which will name the partition that its row belongs in when it runs",
        )
    condition = {unquote(token.text) for token in tokens(trigger.when or "")}
    virtual = [column.name for column in table.columns if column.generated == "v" and column.name in condition]
    if virtual:
        yield _found(
            trigger,
            "when-virtual",
            Severity.ERROR,
            f"has a WHEN on virtual column {', '.join(virtual)}, not in the WAL",
        )
    loose = [column.name for column in table.columns if column.type == "json"]
    if loose:
        yield _found(
            trigger,
            "json",
            Severity.INFO,
            f"will see json column {', '.join(loose)} as jsonb keeps it (spacing and repeated keys are gone)",
        )


def fires_apart(trigger: Trigger, partitions: Sequence[str]) -> Finding:
    """It is off in these partitions and on in others: the stream does not tell them apart."""
    return _found(
        trigger,
        "partition-off",
        Severity.ERROR,
        f"is off in {', '.join(partitions)} and on in other partitions: the stream tells changes by the partitioned "
        "table",
        "enable or disable it in all of them, or keep it",
    )


def written_tables(source: str) -> list[str]:
    """The tables that a body names after INSERT INTO, as it names them (quoted where it quotes them)."""
    listed = list(tokens(source))
    found: list[str] = []
    for place, token in enumerate(listed[:-2]):
        if [token.text.lower(), listed[place + 1].text.lower()] != ["insert", "into"]:
            continue
        name, following = listed[place + 2].text, [after.text for after in listed[place + 3 : place + 5]]
        found.append(f"{name}.{following[1]}" if following[:1] == ["."] and len(following) == 2 else name)
    return sorted(set(found))


def clock_default(trigger: Trigger, relation: str, column: str) -> Finding:
    """A body writes into a table that fills a column with the time by itself: it will be the time of the run."""
    return _found(
        trigger,
        "clock-default",
        Severity.INFO,
        f"writes into {relation}, which fills {column} with the time of the run and not of the original commit",
        f"ALTER TABLE {relation} ALTER COLUMN {column} SET DEFAULT {CLOCK}.now() gives both writers the right time",
    )
