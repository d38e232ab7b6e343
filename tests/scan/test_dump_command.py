"""`afterwrite scan DUMP` as a stranger runs it: a file, no database, and the same faces as a live scan."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from typed import typed

from afterwrite.errors import ExitCode
from afterwrite.scan.report.document import ScanDocument

DUMPS = Path(__file__).parent / "dumps"


def afterwrite(*words: str | Path, stdin: bytes | None = None, cwd: Path | None = None) -> tuple[int, str, str]:
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "DATABASE", "AFTERWRITE_D"))
    }
    environment = {**kept, "COLUMNS": "80", "PGHOST": "/nowhere", "NO_COLOR": "1"}
    done = typed("scan", *words, env=environment, cwd=cwd, input=stdin)
    return done.returncode, done.stdout, done.stderr


def test_json_says_that_the_source_is_a_dump_and_what_became_of_it() -> None:
    code, said, _ = afterwrite(DUMPS / "structure.sql", "--json")
    assert code == ExitCode.OK
    shown = msgspec.json.decode(said, type=ScanDocument)
    assert shown.subject.name == "structure.sql"
    assert shown.subject.dump is not None
    assert shown.subject.dump.file.endswith("structure.sql")
    assert shown.subject.dump.loaded["CREATE TRIGGER"] == 8
    assert [finding.text.split(":")[0] for finding in shown.missing] == ["no statistics"]
    assert shown.counts == {"retire": 2, "defer": 0, "review": 5, "keep": 1}


def test_the_terminal_and_markdown_name_the_dump_and_its_missing_parts() -> None:
    code, said, _ = afterwrite(DUMPS / "supabase.sql")
    assert code == ExitCode.OK
    assert "8 triggers on 3 tables of the dump supabase.sql" in " ".join(said.split())
    assert "no statistics: a dump has none" in said
    assert "dump-missing-extension" in said
    assert f"Next: afterwrite scan {DUMPS / 'supabase.sql'} --explain" in said or "review" not in said
    code, said, _ = afterwrite(DUMPS / "supabase.sql", "--markdown")
    assert code == ExitCode.OK
    assert "supabase.sql" in said
    assert "no statistics: a dump has none" in said


def test_a_dump_is_read_from_the_standard_input_and_explained() -> None:
    code, said, _ = afterwrite("-", "--explain", "visits.audit_visits", stdin=(DUMPS / "supabase.sql").read_bytes())
    assert code == ExitCode.OK
    assert "record_version" in said


LEFTOVER = """
create table parcel (id int primary key);
create table parcel_log (id bigserial primary key, op text, at timestamptz default now());
create table other (id int primary key);
create table other_log (id bigserial primary key, op text, at timestamptz default now());
create function log_parcel() returns trigger language plpgsql as
  $$ begin insert into parcel_log (op) values (tg_op); return null; end $$;
create function log_other() returns trigger language plpgsql as
  $$ begin insert into other_log (op) values (tg_op); return null; end $$;
create trigger log after insert on parcel for each row execute function log_parcel();
create trigger log after insert on other for each row execute function log_other();
create rule passed_on as on insert to parcel_log do also insert into other (absent) values (new.id);
"""


def test_what_a_dump_could_not_load_puts_the_triggers_whose_tables_it_names_under_review() -> None:
    code, said, _ = afterwrite("-", "--json", stdin=LEFTOVER.encode())
    assert code == ExitCode.OK
    verdicts = {each.table: each.verdict.value for each in msgspec.json.decode(said, type=ScanDocument).triggers}
    assert verdicts == {"parcel": "review", "other": "retire"}
    code, said, _ = afterwrite("-", "--explain", "parcel.log", stdin=LEFTOVER.encode())
    assert code == ExitCode.OK
    assert "not loaded" in " ".join(said.split())


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["absent.sql"], ExitCode.USAGE, "no file absent.sql"),
        (["."], ExitCode.USAGE, "is a directory"),
        (["archive"], ExitCode.USAGE, "pg_restore --schema-only -f structure.sql archive"),
        (["structure.sql", "--dsn", "dbname=x"], ExitCode.USAGE, "two sources"),
        (
            [DUMPS / "structure.sql", "--schema", "nosuch"],
            ExitCode.USAGE,
            "there is no schema nosuch with tables in it",
        ),
    ],
)
def test_what_cannot_be_scanned_is_told_with_its_remedy(
    tmp_path: Path, words: list[str | Path], code: ExitCode, said: str
) -> None:
    (tmp_path / "archive").write_bytes(b"PGDMP\x01\x0f")
    answered, out, talk = afterwrite(*words, cwd=tmp_path)
    assert answered == code
    assert out == ""
    assert said in " ".join(talk.split())


def test_interrupting_a_load_leaves_no_server_and_no_folder(tmp_path: Path) -> None:
    dump = tmp_path / "long.sql"
    dump.write_text("".join(f"create table t{n} (id int primary key, a text unique);\n" for n in range(8_000)))
    with subprocess.Popen(
        [sys.executable, "-m", "afterwrite", "scan", dump], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as running:
        home = None
        deadline = time.monotonic() + 30
        while home is None and time.monotonic() < deadline:
            time.sleep(0.1)
            home = server_of(running.pid)
        assert home is not None
        running.terminate()
        _, said = running.communicate(timeout=30)
    assert "nothing was left half done" in said.decode()
    assert not home.exists()


def server_of(parent: int) -> Path | None:
    """The folder of the server that a process has started."""
    listed = subprocess.run(
        ["ps", "-eww", "-o", "ppid=", "-o", "args="], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines():
        words = line.split()
        if words[0] == str(parent) and "-D" in words and words[1].endswith("/postgres"):
            return Path(words[words.index("-D") + 1]).parent
    return None
