"""docs/recorder.md runs as it stands, and its tables say what there is."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import psycopg
from docrunner import DOCS, run_page

from afterwrite.configfile import parse_size
from afterwrite.recorder import Options
from afterwrite.recorder.commit import DropReason

PAGE = DOCS / "recorder.md"


def test_the_recorders_page_runs_as_it_stands(installed_dsn: str, tmp_path: Path) -> None:
    names = run_page(PAGE, {"dsn": installed_dsn, "spool_dir": str(tmp_path)})
    names["recorder"].close()
    names["careful"].close()
    with psycopg.connect(installed_dsn) as db:
        stored = db.execute("select action, source from afterwrite.activity order by occurred_at").fetchall()
    assert stored == [("order.paid", "billing"), ("invoice.sent", "billing")]


def test_its_tables_name_every_setting_with_its_default_and_every_reason() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `(\w+)` \| ([^|]*?) ?\|", text.partition("## Settings")[2], re.MULTILINE))
    defaults = msgspec.to_builtins(Options())
    assert told.keys() == defaults.keys()
    for name, default in defaults.items():
        if isinstance(default, bool):
            assert told[name] == str(default).lower(), name
        elif isinstance(default, (int, float)):
            size = parse_size(told[name]) if name.endswith("_bytes") else float(told[name])
            assert size == default, name
        elif isinstance(default, str):
            assert told[name] == default, name
    reasons = re.findall(r"^\| `(\w+)` \|", text.partition("| reason |")[2].partition("\n\n")[0], re.MULTILINE)
    assert set(reasons) == {reason.value for reason in DropReason}
