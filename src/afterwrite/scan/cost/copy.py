"""A copy of a schema to rehearse on: a dump in a server of our own, or what pg_dump says of a live database.

Triggers run here as the copy's owner, who has no other right: not to read a file, not to reach a network.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
from psycopg.conninfo import make_conninfo

from afterwrite.errors import AfterwriteError, DatabaseError, Finding, Severity
from afterwrite.postgres import connect, describe_dsn, parse_dsn
from afterwrite.postgres.embedded import find_installation
from afterwrite.scan.cost.figures import Measured, Origin
from afterwrite.scan.cost.rehearse import SECONDS, Told, rehearse
from afterwrite.scan.dump.load import LoadedDump, let_execute, loaded_dump
from afterwrite.scan.survey import Survey


async def rehearse_dump(
    dump: LoadedDump, survey: Survey, *, seconds: float = SECONDS, told: Told | None = None
) -> Measured:
    """Rehearse on a dump that stands in a server of our own."""
    await let_execute(dump)
    async with connect(dump.dsn, application_name="afterwrite scan") as db:
        return await rehearse(db, survey, seconds=seconds, told=told)


async def rehearse_live(
    dsn: str | None, survey: Survey, *, seconds: float = SECONDS, told: Told | None = None
) -> Measured:
    """Rehearse on a copy of a live database's schema, which pg_dump reads; of the live one nothing else is touched.

    Where no copy can be made (no pg_dump that fits the server, or one that is refused), a finding says what is missing.
    """
    with tempfile.TemporaryDirectory(prefix="afterwrite-") as folder:
        file = Path(folder, "schema.sql")
        try:
            await dump_schema(dsn, survey.inventory.server_version // 10_000, file)
        except AfterwriteError as error:
            return _without_copy(survey, error)
        async with loaded_dump(str(file)) as dump:
            measured = await rehearse_dump(dump, survey, seconds=seconds, told=told)
            left = len(dump.report.not_loaded)
            if not left:
                return measured
            note = Finding(
                rule="rehearsal-incomplete-copy",
                severity=Severity.INFO,
                where=survey.inventory.database,
                text=f"{left} definitions could not be made on the copy: what hangs on them is not measured",
                remedy="scan a dump of it (pg_dump --schema-only) to see which",
            )
            return msgspec.structs.replace(measured, findings=(*measured.findings, note))


def _without_copy(survey: Survey, error: AfterwriteError) -> Measured:
    note = Finding(
        rule="no-rehearsal",
        severity=Severity.WARNING,
        where=survey.inventory.database,
        text=f"time and WAL of each trigger, rehearsed: there is no copy to rehearse on, since {error}",
        remedy=error.remedy,
    )
    return Measured(origin=Origin.REHEARSE, findings=(note,))


async def dump_schema(dsn: str | None, version: int, file: Path) -> None:
    """Write the schema of a live database into a file, with the pg_dump that fits a server of this version."""
    words = {name: str(value) for name, value in parse_dsn(dsn).items()}
    # A password on the command line could be read by everybody on this machine.
    password = words.pop("password", None)
    environment = {**os.environ, **({"PGPASSWORD": password} if password else {})}
    child = await asyncio.create_subprocess_exec(
        find_pg_dump(version),
        *("--schema-only", "--no-owner", "--no-privileges", "--no-publications", "--no-subscriptions"),
        *("--lock-wait-timeout=2s", f"--file={file}", f"--dbname={make_conninfo('', **words)}"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    try:
        _, complained = await child.communicate()
    except BaseException:
        if child.returncode is None:
            child.kill()
            await child.wait()
        raise
    if child.returncode:
        said = complained.decode(errors="replace").strip().splitlines()
        reason = next((line for line in said if "error" in line), said[0] if said else "no reason given")
        raise DatabaseError(
            f"pg_dump could not read the schema of {describe_dsn(dsn)}: {reason.removeprefix('pg_dump: ')}",
            remedy="a role that may read all tables can (GRANT pg_read_all_data TO …); or scan a dump: "
            "afterwrite scan structure.sql --rehearse",
        )


def find_pg_dump(version: int) -> str:
    """The oldest pg_dump on this machine that knows so new a server."""
    found = sorted((number, path) for path in _candidates() if (number := _version(path)) >= version)
    if not found:
        raise AfterwriteError(
            f"there is no pg_dump for PostgreSQL {version} or later on this machine, which would read the schema",
            remedy=f"install the client programs of PostgreSQL {version}, or make the dump elsewhere "
            "(pg_dump --schema-only) and run: afterwrite scan structure.sql --rehearse",
        )
    return str(found[0][1])


def _candidates() -> Iterator[Path]:
    if on_path := shutil.which("pg_dump"):
        yield Path(on_path)
    yield from Path("/usr/lib/postgresql").glob("*/bin/pg_dump")
    try:
        yield find_installation().bin_dir / "pg_dump"
    except AfterwriteError:
        return


def _version(path: Path) -> int:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    match = re.search(r"\(PostgreSQL\) (\d+)", said)
    return int(match[1]) if match else 0
