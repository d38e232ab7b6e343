"""The corpus: databases in the styles seen in the wild, and the verdict that was meant for each of their triggers.

    -- = keep: enforced-target            the verdict, and the rule (or one|another) that must be among the reasons
    -- Because: the log's unique key …    what a careful DBA says
    -- Wrong: scan says retire, as …      scan is known to be wrong here: a strict xfail
    create trigger …                      or, where a function makes it:  -- = retire: appends-to-log @ public.t.name

A scene is one file of ``corpus/`` and is laid into a database of its own, so that names mean what they mean there.
Small scripts, such as the examples of docs/rules.md, take turns in one database that is emptied between them.
"""

from __future__ import annotations

import re
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg

from afterwrite.postgres import connect
from afterwrite.postgres.embedded import Server
from afterwrite.scan.catalog import read_inventory
from afterwrite.scan.classify import Judgement, Verdict
from afterwrite.scan.parser import open_parser
from afterwrite.scan.survey import judge_inventory

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.sql"))
_MARK = re.compile(r"^-- = (?P<verdict>\w+)(?:: (?P<rules>[a-z|-]+))?(?: @ (?P<name>\S+))?$")
_TRIGGER = re.compile(
    r"create (?:or replace )?(?:constraint )?trigger (?P<name>\"[^\"]+\"|\w+)\s.*?\son "
    r"(?:(?P<schema>\w+)\.)?(?P<table>\"[^\"]+\"|\w+)",
    re.DOTALL,
)


class Intention(NamedTuple):
    """What a careful DBA says of a trigger (``schema.table.name``); one of ``rules`` must be among the reasons."""

    scene: str
    trigger: str
    verdict: Verdict
    rules: tuple[str, ...]
    because: str
    wrong: str

    @property
    def id(self) -> str:
        return f"{self.scene}:{self.trigger}"


def intentions(path: Path) -> Iterator[Intention]:
    """The intentions that stand in a scene's file."""
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    place = 0
    for number, line in enumerate(lines):
        place += len(line)
        mark = _MARK.match(line.rstrip("\n"))
        if mark is None:
            continue
        notes = {"Because": "", "Wrong": ""}
        for note in lines[number + 1 :]:
            kind, _, said = note.removeprefix("-- ").partition(": ")
            if not note.startswith("-- ") or kind not in notes:
                break
            notes[kind] = said.strip()
        yield Intention(
            scene=path.stem,
            trigger=mark["name"] or _next_trigger(text, place),
            verdict=Verdict(mark["verdict"]),
            rules=tuple(mark["rules"].split("|")) if mark["rules"] else (),
            because=notes["Because"],
            wrong=notes["Wrong"],
        )


def _next_trigger(text: str, place: int) -> str:
    found = _TRIGGER.search(text, place)
    assert found is not None, text[place : place + 80]
    return f"{found['schema'] or 'public'}.{found['table']}.{found['name']}".replace('"', "")


# A new database for each script would cost more than all that is done in it.
_EMPTY = """do $$
declare each text;
begin
  for each in select nspname from pg_namespace
              where nspname not like 'pg!_%' escape '!' and nspname <> 'information_schema' loop
    execute format('drop schema %I cascade', each);
  end loop;
  for each in select setrole::regrole from pg_db_role_setting s join pg_database d on d.oid = s.setdatabase
              where d.datname = current_database() and setrole <> 0 loop
    execute format('alter role %s in database %I reset all', each, current_database());
  end loop;
  create schema public;
end $$"""


async def judge_scripts(server: Server, scripts: Mapping[str, str], *, trigger: str) -> dict[str, Judgement]:
    """The judgement of the trigger of that name in each script's database, by the script's name."""
    found: dict[str, Judgement] = {}
    async with open_parser() as parser:
        with _database(server, f"scripts_{secrets.token_hex(4)}") as dsn:
            for name, script in scripts.items():
                with psycopg.connect(dsn, autocommit=True) as laying:
                    laying.execute(_EMPTY)
                    laying.execute(script)  # type: ignore[arg-type]
                async with connect(dsn) as db:
                    survey = await judge_inventory(await read_inventory(db), parser)
                (found[name],) = [each for each in survey.judgements if each.trigger.name == trigger]
    return found


@contextmanager
def laid(server: Server, path: Path, prefix: str) -> Iterator[str]:
    """A database with a scene in it, dropped afterwards; gives its DSN."""
    with _database(server, f"{prefix}_{path.stem}") as dsn:
        with psycopg.connect(dsn, autocommit=True) as scene:
            scene.execute(path.read_text())  # type: ignore[arg-type]
        yield dsn


@contextmanager
def _database(server: Server, name: str) -> Iterator[str]:
    strategy = "strategy file_copy" if server.version >= 15 else ""
    with psycopg.connect(server.dsn(), autocommit=True) as admin:
        admin.execute(f"drop database if exists {name} with (force)")
        admin.execute(f"create database {name} template template1 {strategy}")
    try:
        yield server.dsn(name)
    finally:
        with psycopg.connect(server.dsn(), autocommit=True) as admin:
            admin.execute(f"drop database {name} with (force)")


def shown() -> str:
    """The corpus in numbers, as docs/scan-corpus.md has it."""
    lines = ["| scene | triggers | " + " | ".join(Verdict) + " |", "|---|" + "--:|" * (len(Verdict) + 1)]
    whole: Counter[Verdict] = Counter()
    for path in CORPUS:
        counted = Counter(each.verdict for each in intentions(path))
        whole += counted
        lines.append(_row(path.stem, counted))
    return "\n".join((*lines, _row("together", whole)))


def _row(name: str, counted: Counter[Verdict]) -> str:
    return f"| {name} | {counted.total()} | " + " | ".join(str(counted[verdict]) for verdict in Verdict) + " |"


if __name__ == "__main__":
    print(shown())
