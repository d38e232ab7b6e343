"""A database with triggers that log, decoded through the real slot, and the pure pieces for tests without one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import psycopg

from afterwrite.capture.assemble import Assembler
from afterwrite.capture.lookup import Publications, teach
from afterwrite.capture.pgoutput import RELATION_TAG, decode
from afterwrite.capture.transaction import Relation, Transaction
from afterwrite.postgres import connect
from afterwrite.prove.prover import Prover
from afterwrite.prove.report import Proof, TriggerProof, read_proof
from afterwrite.scan.survey import Survey, survey


class Scene:
    """A small application in a database of its own; what it commits is read back transaction by transaction."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.legacy: tuple[str, ...] = ()
        self.seen: list[Transaction] = []

    def lay(self, sql: str, *, tables: Sequence[str], legacy: Sequence[str], plain: Sequence[str] = ()) -> None:
        """Create the application and prepare capture: publications, a slot, full old rows but for ``plain`` tables."""
        self.legacy = tuple(legacy)
        with psycopg.connect(self.dsn, autocommit=True) as db:
            db.execute(sql)
            for table in tables:
                db.execute(f"alter table {table} replica identity full")
                leaves = db.execute(
                    "select relid::regclass::text from pg_partition_tree(%s) where relid <> %s::regclass",
                    [table, table],
                ).fetchall()
                for (leaf,) in leaves:
                    db.execute(f"alter table {leaf} replica identity full")
            every = ", ".join([*tables, *plain])
            db.execute(f"create publication afterwrite for table {every} with (publish_via_partition_root)")
            db.execute(f"create publication afterwrite_legacy for table {', '.join(legacy)} with (publish = 'insert')")
            name = self.slot
            db.execute("select pg_create_logical_replication_slot(%s, 'pgoutput')", [name])

    @property
    def slot(self) -> str:
        return f"aw_{self.dsn.rpartition('dbname=')[2].split()[0]}"

    def run(self, *statements: str, context: str | None = '{"actor_id": "ann"}', replica: bool = False) -> None:
        """One transaction, stamped unless ``context`` is None."""
        with psycopg.connect(self.dsn) as db:
            if replica:
                db.execute("set local session_replication_role = replica")
            for statement in statements:
                db.execute(statement)
            if context is not None:
                db.execute("select pg_logical_emit_message(true, 'afterwrite.context', %s)", [context])

    def ddl(self, *statements: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as db:
            for statement in statements:
                db.execute(statement)

    def mark(self, action: str, trigger: str, *statements: str, mode: str = "retire", forged: bool = False) -> None:
        """What migrate does: the deed, its row in the ledger (unless ``forged``) and its mark in one transaction."""
        content = (
            f'{{"category":"migration","action":"trigger.{action}","entity_type":"trigger",'
            f'"entity_id":"{trigger}","metadata":{{"mode":"{mode}","phase":1}}}}'
        )
        with psycopg.connect(self.dsn) as db:
            for statement in statements:
                db.execute(statement)
            if not forged:
                db.execute("insert into afterwrite.migration (id, plan) values (1, '') on conflict do nothing")
                db.execute(
                    "insert into afterwrite.ledger (migration, phase, subject, action, sql) values (1, 1, %s, %s, '')",
                    [trigger, f"trigger.{action}"],
                )
            db.execute("select pg_logical_emit_message(true, 'afterwrite.event', %s)", [content])

    def read(self) -> list[Transaction]:
        """What was committed since the last read, decoded."""
        return asyncio.run(self._read())

    async def _read(self) -> list[Transaction]:
        with psycopg.connect(self.dsn, autocommit=True) as db:
            rows = db.execute(
                "select data from pg_logical_slot_get_binary_changes(%s, null, null, 'proto_version', '1',"
                " 'publication_names', 'afterwrite,afterwrite_legacy', 'messages', 'true')",
                [self.slot],
                binary=True,
            ).fetchall()
        assembler = Assembler()
        found: list[Transaction] = []
        async with connect(self.dsn) as database:
            for (data,) in rows:
                if data[0] == RELATION_TAG:
                    relation = decode(data)
                    assert isinstance(relation, Relation)
                    await teach(assembler, relation, database, Publications())
                transaction = assembler.feed(data)
                if transaction is not None:
                    found.append(transaction)
        self.seen += found
        return found

    def survey(self) -> Survey:
        async def look() -> Survey:
            async with connect(self.dsn) as database:
                return await survey(database)

        return asyncio.run(look())

    def prove(self, transactions: Iterable[Transaction], found: Survey | None = None) -> Proof:
        """Show these transactions to a new prover, and read what is proven by then."""
        taken = found or self.survey()

        async def observe() -> Proof:
            async with Prover(self.dsn, taken.judgements, taken.bodies) as prover:
                await prover.observe(list(transactions))
                await prover.settle()
            async with connect(self.dsn) as database:
                return await read_proof(database)

        return asyncio.run(observe())


def of(proof: Proof, trigger: str) -> TriggerProof:
    """The proof of a trigger by its own name."""
    (found,) = [each for each in proof.triggers if each.trigger.endswith(f".{trigger}")]
    return found
