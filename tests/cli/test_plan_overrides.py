"""What a person decides otherwise than scan is asked for a reason, shown wherever the plan is, and kept with it."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
from test_bad_input import afterwrite

from afterwrite.errors import ExitCode

SCHEMA = """
create table orders (id int primary key, qty int);
create table audit_log (op text, id int);
create function log_it() returns trigger language plpgsql as $$
begin
  insert into audit_log (op, id) values (tg_op, new.id);
  return null;
end $$;
create function guard() returns trigger language plpgsql as $$
begin
  if new.qty > 1000000 then raise exception 'too many'; end if;
  return null;
end $$;
create trigger log_it after insert on orders for each row execute function log_it();
create trigger guard after insert on orders for each row execute function guard();
create constraint trigger sure after insert on orders for each row execute function guard();
"""


def moved(text: str, name: str, reason: str) -> str:
    """The plan with a kept trigger moved behind the first one that moves."""
    entries = text.split("[[keep]]\n")
    entry = next(each for each in entries[1:] if f'trigger = "public.orders.{name}"' in each).strip()
    left = text.replace(f"[[keep]]\n{entry}", "")
    lines = entry.replace("\nrule = ", f'\nmode = "retire"\nreason = "{reason}"\nrule = ', 1)
    head, mark, rest = left.partition("[[phase.trigger]]")
    return f"{head}[[phase.trigger]]\n{lines}\n\n{mark}{rest}"


def test_an_override_is_shown_loudly_and_refused_where_no_reason_helps(dsn: str, tmp_path: Path) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SCHEMA)
    file = tmp_path / "plan.toml"
    assert afterwrite("plan", "--dsn", dsn, "--file", str(file)).returncode == ExitCode.OK
    written = file.read_text()
    assert 'rule = "raises"' in written

    file.write_text(moved(written, "guard", "the application checks it now"))
    checked = afterwrite("plan", "--dsn", dsn, "--file", str(file), "--check")
    assert checked.returncode == ExitCode.OK, checked.stdout + checked.stderr
    told = " ".join(checked.stdout.split())
    assert "public.orders.guard" in told
    assert "scan says keep (raises: raises too many when new.qty > 1000000)" in told
    assert "the plan says retire, because: the application checks it now" in told
    as_json = json.loads(afterwrite("plan", "--dsn", dsn, "--file", str(file), "--check", "--json").stdout)
    assert as_json["drift"] == []
    assert [each["severity"] for each in as_json["overrides"]] == ["warning"]

    file.write_text(moved(written, "sure", "nobody needs it"))
    refused = afterwrite("plan", "--dsn", dsn, "--file", str(file), "--check")
    assert refused.returncode == ExitCode.USAGE
    assert "constraint-trigger" in refused.stderr
    without = file.read_text().replace('rule = "constraint-trigger"\n', "")
    file.write_text(without)
    forbidden = afterwrite("plan", "--dsn", dsn, "--file", str(file), "--check")
    assert forbidden.returncode == ExitCode.DRIFT
    assert "is a constraint trigger" in " ".join(forbidden.stdout.split())
