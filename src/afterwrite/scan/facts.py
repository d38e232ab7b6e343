"""What a body does, fact by fact: the vocabulary between the parser, the verdict rules, proof and deferral.

    function text ─▶ parser (a child process) ─▶ Body of the function ─▶ follow ─▶ Body as one trigger runs it

A fact is what one place of a body does when it is reached. ``line`` counts from 1 within ``pg_proc.prosrc``; ``guards``
are the conditions on the way to it, outermost first; ``via`` names the functions through which a trigger comes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec


class Language(StrEnum):
    """What a text is: a PL/pgSQL or SQL function, one resolved dynamic statement, or a WHEN condition."""

    PLPGSQL = "plpgsql"
    SQL = "sql"
    STATEMENT = "statement"
    CONDITION = "condition"


class TermKind(StrEnum):
    """``name`` is a TG_ variable, a parameter or a row's field; ``choice`` is any one of its parts."""

    LITERAL = "literal"
    NULL = "null"
    NAME = "name"
    CALL = "call"
    CHOICE = "choice"
    UNKNOWN = "unknown"


class Term(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An expression whose value may be known before it runs: literals, TG_ variables, and text made of them.

    ``text`` is the literal's value, the name, the called function (``||`` and ``cast:type`` included) or, where nothing
    is known, the SQL text. ``sql`` is a call as it was written.
    """

    kind: TermKind
    text: str = ""
    sql: str = ""
    parts: tuple[Term, ...] = ()


class PremiseKind(StrEnum):
    ALL = "all"
    ANY = "any"
    NOT = "not"
    EQUAL = "equal"
    IS_NULL = "is null"
    TRUTH = "truth"
    UNKNOWN = "unknown"


class Premise(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition in a form that can be decided where its terms can be; EQUAL means equal to one of ``right``."""

    kind: PremiseKind
    tests: tuple[Premise, ...] = ()
    left: Term | None = None
    right: tuple[Term, ...] = ()


class Guard(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition on the way to a fact: ``text`` is SQL, which must be true (or, ``negated``, not true).

    ``names`` are the variables and columns that it looks at, and one of its own (``@3``) for what it selects from.
    """

    text: str
    line: int
    negated: bool = False
    test: Premise | None = None
    names: tuple[str, ...] = ()


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A text to be read: for PLPGSQL the whole CREATE FUNCTION, for the others the SQL itself.

    ``trigger`` makes ``new`` and ``old`` the trigger's rows; ``parameters`` are the function's own names.
    """

    language: Language
    text: str
    trigger: bool = False
    parameters: tuple[str, ...] = ()


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where something happens. ``handler`` is true inside an EXCEPTION handler, ``loop`` inside a loop.

    ``caught``: an error here goes no further, because WHEN OTHERS of its block takes it and raises none.
    """

    line: int = 0
    guards: tuple[Guard, ...] = ()
    via: tuple[str, ...] = ()
    handler: bool = False
    loop: bool = False
    caught: bool = False

    @property
    def condition(self) -> str:
        """The guards as one SQL condition; empty when there is none."""
        return " and ".join(
            f"({guard.text}) is not true" if guard.negated else f"({guard.text})" for guard in self.guards
        )


class OnTable(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A fact about a table. ``schema`` is None while (or where) the name could not be resolved."""

    schema: str | None = None
    table: str

    @property
    def relation(self) -> str:
        """``schema.table``, or the bare name where the schema is not known."""
        return f"{self.schema}.{self.table}" if self.schema else self.table


class OnConflict(StrEnum):
    NONE = ""
    NOTHING = "nothing"
    UPDATE = "update"


class Insert(OnTable, frozen=True, kw_only=True, omit_defaults=True):
    """``columns`` as named (filled from the table when the statement names none); ``values`` their SQL, in that order.

    ``values`` is the VALUES row or the select list; empty when neither can be laid against the columns one by one.
    ``source`` is the SELECT (with its WITH) for INSERT … SELECT. ``updates`` are the columns of DO UPDATE SET.
    ``drops_duplicates``: a handler of its block takes what a unique index refuses.
    """

    columns: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    source: str = ""
    from_select: bool = False
    rows: int = 1
    on_conflict: OnConflict = OnConflict.NONE
    drops_duplicates: bool = False
    updates: tuple[str, ...] = ()
    returning_into: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    text: str = ""


class Update(OnTable, frozen=True, kw_only=True, omit_defaults=True):
    """UPDATE (also MERGE's): the columns it sets, their SQL where it can be cut out, and its WHERE."""

    columns: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    where: str = ""
    names: tuple[str, ...] = ()
    text: str = ""


class Delete(OnTable, frozen=True, kw_only=True, omit_defaults=True):
    where: str = ""
    truncate: bool = False
    text: str = ""


class Refresh(OnTable, frozen=True, kw_only=True, omit_defaults=True):
    """REFRESH MATERIALIZED VIEW."""


class Read(OnTable, frozen=True, kw_only=True, omit_defaults=True):
    """A table selected from: the columns looked at (``*`` for all) and the variables that the answer flows into."""

    columns: tuple[str, ...] = ()
    into: tuple[str, ...] = ()
    locks: bool = False


class RowRead(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A look at the trigger's own row: ``row`` is new or old, ``column`` is ``*`` for the whole."""

    row: str
    column: str


class NewAssignment(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """NEW.field := text; ``*`` is the whole row."""

    field: str
    text: str
    names: tuple[str, ...] = ()


class Assignment(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """variable := text (also its default). ``selected``: SELECT … INTO and the like, where text is the whole query."""

    variable: str
    text: str
    names: tuple[str, ...] = ()
    selected: bool = False


class Raise(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """RAISE and what amounts to it. ``level`` is exception, warning, notice, info, log or debug, or ``caught``: an
    exception that its own block takes and passes on to nobody.

    ``form`` is raise, uncatchable (WHEN OTHERS leaves it alone), reraise (a bare RAISE in a handler), assert, strict
    (INTO STRICT), case (CASE without ELSE), not null (a variable that may not be NULL) or no return (the end of a
    trigger's function is reached).
    """

    level: str
    form: str = "raise"
    message: str = ""


class Return(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """``what`` is new, old, null, none (a bare RETURN) or, for anything else, the SQL; ``names`` what it looks at."""

    what: str
    names: tuple[str, ...] = ()


class Call(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A function call; ``into`` are the variables that the answer flows into.

    ``field`` is a call only if no column is so named: ``(row).name`` and ``table.name`` may mean ``name(row)``.
    ``procedure`` is a CALL: what is given for its INOUT parameters may be set.
    """

    schema: str | None = None
    name: str
    arguments: tuple[Term, ...] = ()
    texts: tuple[str, ...] = ()
    argument_names: tuple[str | None, ...] = ()
    names: tuple[str, ...] = ()
    into: tuple[str, ...] = ()
    field: bool = False
    procedure: bool = False

    @property
    def full_name(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


class Operator(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """An operator that is used: it may run a function of somebody's own."""

    name: str


class Cast(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A value made into another type, by a cast or by a variable of that type: it may fail, or run a function.

    ``type`` is the name as written, ``schema`` apart; ``table%type`` is written out. ``names`` are what it looks at,
    ``origins`` the columns, parameters and variables whose own text it is, at most cut and pasted.
    """

    schema: str | None = None
    type: str
    origins: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    constant: bool = False


class Division(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A division by something that may be zero."""

    text: str


class Discard(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A PERFORM: what it computes is thrown away, so that its point is what it does on the way.

    ``further`` is how many lines it goes on after its first one. ``calls`` are the functions that it names; ``acts``
    says that it does something by itself, ``reads`` that it looks at tables, ``risky`` that it may fail.
    """

    text: str
    further: int = 0
    calls: tuple[str, ...] = ()
    acts: bool = False
    reads: bool = False
    risky: bool = False


class Notify(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """NOTIFY or pg_notify(): SQL of channel and payload."""

    channel: str
    payload: str = ""


class Setting(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A session setting read (current_setting) or written (set_config, SET); ``name`` is None when it is computed.

    ``strict``: reading it fails where nobody set it.
    """

    name: str | None
    written: bool = False
    strict: bool = False


class Session(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """Something that only the call knows: tg_argv, pg_trigger_depth, current_user, inet_client_addr, txid_current…"""

    name: str


class Lock(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """An advisory lock or LOCK TABLE."""

    what: str


class Outside(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A call that reaches outside the database (http, pg_net, dblink, COPY PROGRAM…)."""

    function: str


class Command(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A statement that is neither a query nor a change of rows: DDL, COPY, SET ROLE, COMMIT…"""

    what: str


class Dynamic(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """EXECUTE. ``texts`` are the statements it may run for this trigger, once resolved; else ``why`` says why not."""

    text: str
    term: Term
    using: tuple[str, ...] = ()
    using_terms: tuple[Term, ...] = ()
    into: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    why: str = ""


class Unknown(Fact, frozen=True, kw_only=True, omit_defaults=True):
    """A place that cannot be read: ``rule`` is why (unparsable, other-language, unknown-function, dynamic-sql…)."""

    rule: str
    text: str


ACTS = (Insert, Update, Delete, Refresh, Notify, Lock, Outside, Command, Dynamic, Unknown)
"""The kinds of facts that do something, or may."""


class Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that one function (or, after ``follow``, one trigger through all that it calls) does."""

    inserts: tuple[Insert, ...] = ()
    updates: tuple[Update, ...] = ()
    deletes: tuple[Delete, ...] = ()
    refreshes: tuple[Refresh, ...] = ()
    reads: tuple[Read, ...] = ()
    row_reads: tuple[RowRead, ...] = ()
    new_assignments: tuple[NewAssignment, ...] = ()
    assignments: tuple[Assignment, ...] = ()
    raises: tuple[Raise, ...] = ()
    returns: tuple[Return, ...] = ()
    calls: tuple[Call, ...] = ()
    operators: tuple[Operator, ...] = ()
    casts: tuple[Cast, ...] = ()
    divisions: tuple[Division, ...] = ()
    discards: tuple[Discard, ...] = ()
    notifies: tuple[Notify, ...] = ()
    settings: tuple[Setting, ...] = ()
    sessions: tuple[Session, ...] = ()
    locks: tuple[Lock, ...] = ()
    outside: tuple[Outside, ...] = ()
    commands: tuple[Command, ...] = ()
    dynamics: tuple[Dynamic, ...] = ()
    unknowns: tuple[Unknown, ...] = ()
    loops: tuple[int, ...] = ()
    exception_blocks: tuple[int, ...] = ()

    @property
    def parsed(self) -> bool:
        """Whether every place of it could be read."""
        return not self.unknowns

    @property
    def old_columns(self) -> frozenset[str]:
        """Columns of OLD that are looked at; ``*`` among them for the whole row."""
        return frozenset(read.column for read in self.row_reads if read.row == "old")

    @property
    def new_columns(self) -> frozenset[str]:
        """Columns of NEW that are looked at; ``*`` among them for the whole row."""
        return frozenset(read.column for read in self.row_reads if read.row == "new")


def _fact_fields() -> dict[str, type[Fact]]:
    found: dict[str, type[Fact]] = {}
    for field in msgspec.structs.fields(Body):
        kind = getattr(field.type, "__args__", (None,))[0]
        if isinstance(kind, type) and issubclass(kind, Fact):
            found[field.name] = kind
    return found


FACT_FIELDS = _fact_fields()
"""The fields of Body that hold facts, and which kind each holds."""


def shared(body: Body) -> Body:
    """The same body, where facts under the same conditions hold one and the same tuple of one and the same guards."""
    seen: dict[tuple[Guard, ...], tuple[Guard, ...]] = {}
    guards: dict[Guard, Guard] = {}

    def one(given: tuple[Guard, ...]) -> tuple[Guard, ...]:
        if given not in seen:
            seen[given] = tuple(guards.setdefault(guard, guard) for guard in given)
        return seen[given]

    changes: dict[str, Any] = {}
    for field in FACT_FIELDS:
        facts: tuple[Fact, ...] = getattr(body, field)
        if facts:
            changes[field] = tuple(msgspec.structs.replace(fact, guards=one(fact.guards)) for fact in facts)
    return msgspec.structs.replace(body, **changes)


def assemble(facts: Mapping[type[Fact], Sequence[Fact]], **more: Any) -> Body:
    """A Body of facts sorted by kind; each kind keeps its order."""
    return Body(**{field: tuple(facts.get(kind, ())) for field, kind in FACT_FIELDS.items()}, **more)
