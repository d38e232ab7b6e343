"""The legacy application's data layer: what there is to work on, and one transaction at a time.

``Unit`` is one transaction. Its verbs run a statement and note what must be in the database once it commits.
"""

from __future__ import annotations

import random
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import psycopg
from psycopg import sql
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from afterwrite.context import Context, encode_context
from afterwrite.demo.expectations import (
    CASCADES,
    Facts,
    consequences,
    key_columns,
    key_of,
    of_one_statement,
    rewritten,
    summed,
)
from afterwrite.demo.ledger import Effect, RowChange
from afterwrite.demo.transcript import Changed, Deed, Made, Missed, Removed
from afterwrite.postgres import statement
from afterwrite.record import CONTEXT_PREFIX, Operation

Item = TypeVar("Item")
Connection = psycopg.Connection[DictRow]


class Pool(Generic[Item]):
    """Things that clients work on, the early ones most often. Safe between threads."""

    def __init__(self, items: Sequence[Item] = ()) -> None:
        self._items = list(items)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._items)

    def pick(self, rng: random.Random) -> Item:
        """One of them, skewed: a tenth of the things gets a third of the work."""
        with self._lock:
            if not self._items:
                raise NothingToDo
            return self._items[int(len(self._items) * rng.random() ** 2)]

    def take(self, rng: random.Random) -> Item:
        """One of them, which nobody else will be given any more."""
        with self._lock:
            if not self._items:
                raise NothingToDo
            at = rng.randrange(len(self._items))
            self._items[at], self._items[-1] = self._items[-1], self._items[at]
            return self._items.pop()

    def add(self, item: Item) -> None:
        with self._lock:
            self._items.append(item)


class Person(NamedTuple):
    """An investor who has an account and a wallet."""

    investor: str
    user: str
    wallet: str


class World(msgspec.Struct, frozen=True):
    """The identifiers that the application's screens would show. Rows behind them are read when they are needed."""

    facts: Facts
    admins: Pool[str]
    people: Pool[Person]
    viewers: Pool[str]
    projects: Pool[str]
    drafts: Pool[str]
    groups: Pool[str]
    spare_groups: Pool[str]
    imported: Pool[str]
    tokens: Pool[str]
    draft_tokens: Pool[str]
    templates: Pool[str]
    submitted: Pool[str]
    investments: Pool[str]
    allocations: Pool[str]
    operations: Pool[int]
    scheduled: Pool[str]
    paid: Pool[str]
    requested: Pool[str]
    spare_wallets: Pool[str]
    booked: Pool[tuple[int, str]]
    documents: Pool[str]
    signed: Pool[str]
    pending_bulk: Pool[str]


def read_world(connection: Connection) -> World:
    """Look up what there is to work on."""

    def relation(query: bytes) -> dict[str, str]:
        return {row["a"]: row["b"] for row in connection.execute(query)}

    people = connection.execute(statement("application.read_people"))
    things: dict[str, list[str]] = defaultdict(list)
    for row in connection.execute(statement("application.read_things")):
        things[row["list"]].append(row["id"])
    return World(
        facts=Facts(
            owner_of=relation(statement("application.read_owners")),
            user_of=relation(statement("application.read_accounts")),
            project_of=relation(statement("application.read_issues")),
        ),
        admins=Pool(things["admins"]),
        people=Pool([Person(row["investor"], row["user"], row["wallet"]) for row in people]),
        viewers=Pool(things["viewers"]),
        projects=Pool(things["projects"]),
        drafts=Pool(things["drafts"]),
        groups=Pool(things["groups"]),
        spare_groups=Pool(),
        imported=Pool(things["imported"]),
        tokens=Pool(things["tokens"]),
        draft_tokens=Pool(),
        templates=Pool(),
        submitted=Pool(things["submitted"]),
        investments=Pool(things["investments"]),
        allocations=Pool(things["allocations"]),
        operations=Pool([int(at) for at in things["operations"]]),
        scheduled=Pool(things["scheduled"]),
        paid=Pool(things["paid"]),
        requested=Pool(things["requested"]),
        spare_wallets=Pool(),
        booked=Pool(),
        documents=Pool(things["documents"]),
        signed=Pool(things["signed"]),
        pending_bulk=Pool(),
    )


class NothingToDo(Exception):  # noqa: N818 - not an error: the next transaction will find something
    """There is nothing (left) of the kind that this transaction works on."""


class ChangedMind(Exception):  # noqa: N818 - not an error either
    """The user pressed cancel: the transaction is rolled back on purpose."""


class Unit:
    """One transaction, and what it must leave behind if it commits.

    Where it is to be done again elsewhere (``given``: by table, the columns that the database fills), ``deeds`` tells
    how.
    """

    def __init__(
        self,
        connection: Connection,
        rng: random.Random,
        world: World,
        *,
        stamped: bool,
        given: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.connection = connection
        self.rng = rng
        self.world = world
        self.stamped = stamped
        self._given = given
        self.claims = ""
        self.number = 0
        self.deeds: list[Deed] = []
        self.sampled = rng.random() < 0.25
        self.xid: int | None = None
        self.actor = ""
        self.changes: list[RowChange] = []
        self.effects: list[Effect] = []
        self.on_commit: list[Callable[[], None]] = []
        self.on_rollback: list[Callable[[], None]] = []

    def begin(self, actor: str) -> None:
        """Say who is acting, as PostgREST does; where stamping is on, say it into the WAL in the same statement."""
        claims = {
            "sub": actor,
            "role": "authenticated",
            "email": f"{actor[:8]}@example.org",
            "session_id": secrets.token_hex(8),
        }
        encoded = msgspec.json.encode(claims).decode()
        self.actor = actor
        self.claims = encoded
        params = {"claims": encoded}
        if self.stamped:
            context = Context(
                actor_id=actor,
                actor_type="user",
                session_id=claims["session_id"],
                request_id=secrets.token_hex(8),
                settings={"request.jwt.claims": encoded},
            )
            stamp = {"prefix": CONTEXT_PREFIX, "context": encode_context(context)}
            row = self.connection.execute(statement("application.open_stamped_request"), params | stamp).fetchone()
        else:
            row = self.connection.execute(statement("application.open_request"), params).fetchone()
        self.xid = int(row["xid"]) if row else None

    def insert(self, table: str, **values: Any) -> DictRow:
        row = self._one(_insert(table, tuple(values)), _adapted(values))
        self._note(table, Operation.INSERT, [(None, row, values)])
        self._tell_made(table, [row], [values])
        return row

    def insert_many(self, table: str, rows: Sequence[dict[str, Any]]) -> list[DictRow]:
        """Many rows in one statement."""
        made = self.connection.execute(_insert_many(table, tuple(rows[0])), {"rows": Jsonb(rows)}).fetchall()
        self._note(table, Operation.INSERT, [(None, row, None) for row in made])
        self._tell_made(table, made, rows)
        return made

    def lock(self, table: str, *key: Any) -> DictRow:
        """The row, held until the end. Take locks in one order: projects, tokens, wallets by id, then the others."""
        row = self.connection.execute(_lock(table), dict(zip(key_columns(table), key, strict=True))).fetchone()
        if row is None:
            raise NothingToDo
        return row

    def update(self, table: str, row: DictRow, **values: Any) -> DictRow:
        """Change a locked row. Equal values are written all the same, as object mappers do."""
        params = {**_adapted(values), **{f"key_{name}": row[name] for name in key_columns(table)}}
        new = self._one(_update(table, tuple(values)), params)
        self._note(table, Operation.UPDATE, [(row, new, values)])
        if self._given is not None:
            self.deeds.append(Changed(table, _told_by(table, row), values))
        return new

    def delete(self, table: str, row: DictRow) -> None:
        """Remove a row, and note what its foreign keys drag along."""
        for child, column, operation in CASCADES.get(table, ()):
            self.connection.execute(_lock_hard(table), {name: row[name] for name in key_columns(table)})
            children = self.connection.execute(_children(child, column), {"parent": row["id"]}).fetchall()
            emptied: list[DictRow | None] = [
                {**one, column: None} if operation is Operation.UPDATE else None for one in children
            ]
            self._note(child, operation, [(old, new, None) for old, new in zip(children, emptied, strict=True)])
        self._one(_delete(table), {name: row[name] for name in key_columns(table)})
        self._note(table, Operation.DELETE, [(row, None, None)])
        if self._given is not None:
            self.deeds.append(Removed(table, _told_by(table, row)))

    def miss(self, name: str, query: bytes, **params: Any) -> None:
        """Run a statement that finds no row."""
        self.connection.execute(query, params)
        if self._given is not None:
            self.deeds.append(Missed(name, params))

    def expect(self, *effects: Effect) -> None:
        self.effects += effects

    @contextmanager
    def savepoint(self) -> Generator[None]:
        """A nested transaction; what it did is forgotten when it fails or is abandoned."""
        marks = len(self.changes), len(self.effects), len(self.on_commit), len(self.deeds)
        try:
            with self.connection.transaction():
                yield
        except BaseException:
            del self.changes[marks[0] :], self.effects[marks[1] :], self.on_commit[marks[2] :], self.deeds[marks[3] :]
            raise

    def take(self, pool: Pool[Item]) -> Item:
        """Take a thing for good; it goes back when we roll back."""
        item = pool.take(self.rng)
        self.on_rollback.append(lambda: pool.add(item))
        return item

    def put(self, pool: Pool[Item], item: Item) -> None:
        """Let others work on it once it is committed."""
        self.on_commit.append(lambda: pool.add(item))

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def money(self, most: int) -> Decimal:
        return Decimal(self.rng.randint(100, most * 100)) / 100

    def settle(self) -> None:
        """Sum up, before COMMIT."""
        self.effects = summed(self.effects)

    def _note(
        self,
        table: str,
        operation: Operation,
        rows: Sequence[tuple[DictRow | None, DictRow | None, dict[str, Any] | None]],
    ) -> None:
        effects: list[Effect] = []
        for old, new, values in rows:
            written = rewritten(table, values) if values and self.sampled else None
            self.changes.append(RowChange(table, operation, key_of(table, new or old or {}), written))
            for follows in consequences(table, old, new, self.world.facts):
                if isinstance(follows, RowChange):
                    self.changes.append(follows)
                else:
                    effects.append(follows)
        self.effects += of_one_statement(effects)

    def _tell_made(self, table: str, made: Sequence[DictRow], rows: Sequence[Mapping[str, Any]]) -> None:
        """One statement made these rows of these values; what the database put into them besides is told too."""
        if self._given is None:
            return
        filled = [name for name in self._given.get(table, ()) if name not in rows[0]]
        told = [{**values, **{name: row[name] for name in filled}} for row, values in zip(made, rows, strict=True)]
        self.deeds.append(Made(table, tuple(told[0]), told))

    def _one(self, query: bytes, params: dict[str, Any]) -> DictRow:
        row = self.connection.execute(query, params).fetchone()
        if row is None:
            raise NothingToDo
        return row


def _told_by(table: str, row: DictRow) -> dict[str, Any]:
    """What tells a row: its key, and where triggers write rows too, by which it is found in another database."""
    natural = ("user_id", "kind", "reference_id", "read_at") if table == "notifications" else ()
    return {name: row[name] for name in (*key_columns(table), *natural)}


def _adapted(values: dict[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(value) if isinstance(value, dict) else value for name, value in values.items()}


def _compose(template: str, table: str, columns: Sequence[str] = ()) -> bytes:
    names = [sql.Identifier(column) for column in columns]
    return (
        sql.SQL(template)  # pyright: ignore[reportArgumentType] - our own templates, below
        .format(
            table=sql.Identifier("public", table),
            columns=sql.SQL(", ").join(names),
            values=sql.SQL(", ").join(map(sql.Placeholder, columns)),
            sets=sql.SQL(", ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(column)) for column in columns
            ),
            key=sql.SQL(" and ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(column))
                for column in key_columns(table)
            ),
            old_key=sql.SQL(" and ").join(
                sql.SQL("{} = {}").format(sql.Identifier(column), sql.Placeholder(f"key_{column}"))
                for column in key_columns(table)
            ),
        )
        .as_bytes()
    )


@cache
def _insert(table: str, columns: tuple[str, ...]) -> bytes:
    return _compose("insert into {table} ({columns}) values ({values}) returning *", table, columns)


@cache
def _insert_many(table: str, columns: tuple[str, ...]) -> bytes:
    return _compose(
        "insert into {table} ({columns})"
        " select {columns} from jsonb_populate_recordset(null::{table}, %(rows)s) returning *",
        table,
        columns,
    )


@cache
def _update(table: str, columns: tuple[str, ...]) -> bytes:
    return _compose("update {table} set {sets} where {old_key} returning *", table, columns)


@cache
def _delete(table: str) -> bytes:
    return _compose("delete from {table} where {key} returning *", table)


@cache
def _lock(table: str) -> bytes:
    return _compose("select * from {table} where {key} for no key update", table)


@cache
def _lock_hard(table: str) -> bytes:
    return _compose("select from {table} where {key} for update", table)


@cache
def _children(table: str, column: str) -> bytes:
    return _compose("select * from {table} where {columns} = %(parent)s for update", table, [column])
