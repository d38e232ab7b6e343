"""What a scan hands out: the document and its schema, Markdown and HTML, and names that were made to do harm."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from psycopg import sql
from reading import surveyed

from afterwrite.scan.cost.figures import Costs, Origin, Saving, TableCost
from afterwrite.scan.report.document import PhaseShown, ScanDocument, document, json_schema
from afterwrite.scan.report.elements import Markup, element
from afterwrite.scan.report.explain import explain
from afterwrite.scan.report.html import html_report
from afterwrite.scan.report.markdown import markdown_report
from afterwrite.scan.report.visible import visible
from afterwrite.scan.verdicts import Verdict

AT = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
DOCS = Path(__file__).parents[2] / "docs"

SHOP = """
create table orders (id bigint primary key, state text, total numeric, owner text);
create table audit_log (id bigserial primary key, table_name text, op text, before jsonb, after jsonb);
create table totals (name text primary key, value numeric);
create table closed_months (month date primary key);
create function is_closed() returns boolean language sql stable as $$
  select exists (select from closed_months where month = date_trunc('month', now()))
$$;
create function refuse(what text) returns void language plpgsql as $$
begin
  -- nothing to see
  raise exception '% is closed', what;
end $$;
create function audit() returns trigger language plpgsql as $$
begin
  insert into audit_log (table_name, op, before, after) values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));
  return null;
end $$;
create function add_up() returns trigger language plpgsql as $$
begin
  update totals set value = value + new.total where name = 'orders' and old.state <> current_setting('app.state', true);
  return null;
end $$;
create function guard() returns trigger language plpgsql as $$
begin
  if new.state = 'paid' then
    perform refuse('order');
  end if;
  return new;
end $$;
create function guess() returns trigger language plpgsql as $$
begin
  execute 'insert into ' || new.owner || ' values (1)';
  return null;
end $$;
create trigger a_audit after insert or update or delete on orders for each row execute function audit();
create trigger b_add_up after update on orders for each row when (old.total is distinct from new.total)
  execute function add_up();
create trigger c_guard before insert or update on orders for each row execute function guard();
create trigger d_guess after insert on orders for each row execute function guess();
"""
# Names and texts as somebody would choose them who wants the reader's browser, terminal or ticket to do something.
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    "\x1b[2J\x1b[31mgone",
    "\u202egnp.exe",
    "a|b `c` ```d",
    "[x](javascript:alert(1)) @everyone #1",
    "[bold red]markup[/]",
    "&lt;b&gt; ]]> -->",
)


def laid(dsn: str, script: str = SHOP) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(script.encode())


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def costs() -> Costs:
    return Costs(
        origins=(Origin.OBSERVE,),
        write_time="shares of the time of all statements that write",
        tables=(
            TableCost(
                table="public.orders",
                inserted=1,
                updated=2,
                deleted=3,
                time_share=0.8,
                triggers_of_time=0.5,
                wal_share=0.9,
                triggers_of_wal=0.7,
            ),
            TableCost(table="public.<b>", inserted=1, updated=2, deleted=3, time_share=0.2, triggers_of_time=0.0),
        ),
        savings=(
            Saving(
                verdicts=(Verdict.RETIRE, Verdict.DEFER),
                triggers=2,
                time_low=0.3,
                time_high=0.4,
                wal_low=0.6,
                wal_high=0.6,
                how="added up",
            ),
        ),
    )


def phases_of(shown: ScanDocument) -> list[PhaseShown]:
    return [
        PhaseShown(
            number=1,
            title="all <of> it",
            retire=tuple(each.identity for each in shown.of(Verdict.RETIRE)),
            defer=tuple(each.identity for each in shown.of(Verdict.DEFER)),
        )
    ]


@pytest.fixture
def hostile(dsn: str) -> ScanDocument:
    """A database whose names, bodies, conditions, arguments and comments are all of this kind."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("create table history_log (id bigserial, what text, row jsonb)")
        for number, name in enumerate(HOSTILE):
            table, short = sql.Identifier(f"{number} {name}"), sql.Identifier(name)
            connection.execute(sql.SQL("create table {} (id int primary key, v text)").format(table))
            body = f"begin\n  insert into history_log (what, row) values ({quoted(name)}, to_jsonb(new)); -- {name}\n"
            keeps = f"  if new.v = {quoted(name)} then raise exception '%', {quoted(name)}; end if;\n"
            for kind, more in (("log", ""), ("keep", keeps)):
                function = sql.Identifier(f"{kind} {name}")
                connection.execute(
                    sql.SQL("create function {}() returns trigger language plpgsql as {}").format(
                        function, sql.Literal(f"{body}{more}  return new;\nend")
                    )
                )
                connection.execute(
                    sql.SQL(
                        "create trigger {} after insert on {} for each row when (new.v <> {}) execute function {}({})"
                    ).format(sql.Identifier(f"{kind}{name}"), table, sql.Literal(name), function, sql.Literal(name))
                )
                comment = sql.SQL("comment on trigger {} on {} is {}")
                connection.execute(comment.format(sql.Identifier(f"{kind}{name}"), table, sql.Literal(name)))
            connection.execute(sql.SQL("create index {} on {} (v)").format(short, table))
    found = surveyed(dsn)
    plain = document(found)
    shown = document(found, costs=costs(), phases=phases_of(plain))
    assert len(shown.triggers) == 2 * len(HOSTILE)
    assert shown.counts["retire"] == shown.counts["keep"] == len(HOSTILE)
    return shown


class _Reader(HTMLParser):
    """Reads a page as a browser would: its elements with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


KNOWN = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "h1", "h2", "p", "div"),
    *("span", "strong", "b", "code", "ul", "li", "dl", "dt", "dd", "br"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "desc", "g", "rect", "text", "circle", "line"),
}


def test_no_name_or_body_becomes_part_of_the_page(hostile: ScanDocument) -> None:
    page = html_report(hostile, AT)
    read = _Reader(page)
    assert read.open == []
    assert {name for name, _ in read.elements} <= KNOWN
    attributes = {attribute for _, given in read.elements for attribute in given}
    assert not any(attribute.startswith("on") for attribute in attributes)
    assert not attributes & {"href", "src", "xlink:href", "action", "style", "srcdoc"}
    assert not any(letter in page for letter in "\x1b\u202e")
    said = "".join(read.texts)
    for name in HOSTILE:
        assert visible(name) in said


def test_the_page_loads_and_runs_nothing(hostile: ScanDocument) -> None:
    page = html_report(hostile, AT)
    [policy] = [
        given["content"] or ""
        for name, given in _Reader(page).elements
        if name == "meta" and given.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    style = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://", style)


def test_pictures_say_in_words_what_they_show(hostile: ScanDocument) -> None:
    page = html_report(hostile, AT)
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 4
    for picture in pictures:
        labelled = re.search(r'aria-labelledby="(\S+) (\S+)"', picture)
        assert labelled is not None
        assert 'role="img"' in picture
        for name in labelled.groups():
            assert re.search(rf'<(title|desc) id="{name}">[^<]+</', picture)
    assert "80 %, triggers 50 % of it" in page
    assert "Without the 2 triggers to retire and defer, writing takes 30 % to 40 % less time and 60 % less WAL" in page


def test_colours_can_be_told_from_what_they_stand_on() -> None:
    style = (Path(sys.modules["afterwrite.scan.report"].__path__[0]) / "report.css").read_text()
    roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(roots) == 3
    for root in roots:
        colours = dict(re.findall(r"--(\w+): (#\w{6})", root))
        for ink in ("ink", "quiet", "retire", "defer", "keep", "review"):
            assert contrast(colours[ink], colours["paper"]) >= 4.5, (ink, root)
        for ground in ("retire", "defer", "keep", "review"):
            assert contrast(colours["on"], colours[ground]) >= 4.5, (ground, root)
        assert contrast(colours["ink"], colours["raised"]) >= 7
        assert contrast(colours["quiet"], colours["raised"]) >= 4.5


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1.4.3."""

    def luminance(colour: str) -> float:
        parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_an_element_escapes_whatever_is_no_element() -> None:
    assert element("p", "<b>", element("b", "&"), class_='"') == '<p class="&quot;">&lt;b&gt;<b>&amp;</b></p>'
    assert element("rect", x=1.25, y=2.0, class_=None) == '<rect x="1.2" y="2"/>'
    assert isinstance(element("p"), Markup)


def test_what_steers_a_terminal_is_shown_as_its_code() -> None:
    assert visible("plain") == "plain"
    assert visible("größe 表 \n\t") == "größe 表 \n\t"
    assert visible("\x1b[2J\x07\x9b\u202e\u200b\U000e0041") == "\\x1b[2J\\x07\\x9b\\u202e\\u200b\\U000e0041"


def test_markdown_is_text_wherever_the_database_speaks(hostile: ScanDocument) -> None:
    page = markdown_report(hostile)
    for line in page.splitlines():
        bare = re.sub(r"(`+).*?\1", "", line)
        assert not re.search(r"<(?!/?(details|summary|b|sub)\b)", bare), line
        assert not re.search(r"(?<!\\)\]\(", bare), line
        assert "@everyone" not in bare
    rows = [line for line in page.splitlines() if line.startswith("| `") and "`" in line[3:]]
    triggers = [line for line in rows if len(re.findall(r"(?<!\\)\|", line)) == 5]
    assert len(triggers) == len(hostile.triggers)
    assert not any(letter in page for letter in "\x1b\u202e")


def test_the_schema_that_is_written_down_is_current() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "afterwrite.scan.report.document"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert made.stdout == (DOCS / "scan.schema.json").read_text(), (
        "run ./run python -m afterwrite.scan.report.document > docs/scan.schema.json"
    )


def test_what_is_printed_is_what_the_schema_says(hostile: ScanDocument) -> None:
    printed = msgspec.json.encode(hostile)
    decoded = msgspec.json.decode(printed, type=ScanDocument)
    # Nothing is lost or made up on the way through the types that the schema is made of.
    assert msgspec.json.decode(msgspec.json.encode(decoded)) == msgspec.json.decode(printed)
    complaints = list(_against(json_schema(), msgspec.json.decode(printed), json_schema(), "$"))
    assert complaints == []


def _against(schema: dict[str, Any], value: Any, root: dict[str, Any], place: str) -> Any:
    """Where a value breaks a JSON Schema, as far as ours use one (types, enums, references, required properties)."""
    if "$ref" in schema:
        yield from _against(root["$defs"][schema["$ref"].rpartition("/")[2]], value, root, place)
        return
    if "anyOf" in schema:
        if all(list(_against(each, value, root, place)) for each in schema["anyOf"]):
            yield f"{place} is none of those allowed"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{place} is {value!r}"
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kind = schema.get("type")
    if kind and not isinstance(value, kinds[kind]):
        yield f"{place} is no {kind}"
    elif kind == "object":
        yield from (f"{place} lacks {name}" for name in schema.get("required", ()) if name not in value)
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, each in value.items():
            if name in known:
                yield from _against(known[name], each, root, f"{place}.{name}")
            elif isinstance(others, dict):
                yield from _against(others, each, root, f"{place}.{name}")
            elif known:
                yield f"{place}.{name} is not in the schema"
    elif kind == "array":
        for number, each in enumerate(value):
            yield from _against(schema["items"], each, root, f"{place}[{number}]")


def test_reasons_carry_the_line_as_it_stands_wherever_it_is(dsn: str) -> None:
    laid(dsn)
    shown = document(surveyed(dsn))
    by_name = {trigger.name: trigger for trigger in shown.triggers}
    assert {name: trigger.verdict.value for name, trigger in by_name.items()} == {
        "a_audit": "retire",
        "b_add_up": "defer",
        "c_guard": "keep",
        "d_guess": "review",
    }
    guard = by_name["c_guard"].reasons[0]
    assert (guard.rule, guard.line, guard.via) == ("raises", 4, ("public.refuse:4",))
    assert guard.code == "raise exception '% is closed', what;"
    assert by_name["a_audit"].reasons[0].code == (
        "insert into audit_log (table_name, op, before, after) "
        "values (tg_table_name, tg_op, to_jsonb(old), to_jsonb(new));"
    )
    assert set(shown.rules) >= {"raises", "appends-to-log", "dynamic-sql"}


def test_an_explanation_marks_the_lines_that_decide_also_in_callees_and_conditions(dsn: str) -> None:
    laid(dsn)
    found = surveyed(dsn)
    told = {each.trigger.name: explain(found, each) for each in found.judgements}
    own, callee = told["c_guard"].passages
    assert (own.title, own.own, callee.title, callee.own) == ("public.guard()", True, "public.refuse()", False)
    assert [(line.number, line.text.strip()) for line in own.lines if line.rules] == [(4, "perform refuse('order');")]
    assert [(line.number, line.rules) for line in callee.lines if line.rules] == [(4, ("raises",))]
    when, body = told["b_add_up"].passages
    assert (when.title, [line.text for line in when.lines]) == (
        "WHEN of the trigger",
        ["(old.total IS DISTINCT FROM new.total)"],
    )
    assert [line.number for line in body.lines if line.rules] == [3]
    needs = " ".join(told["b_add_up"].needs)
    assert "OLD.state (line 3)" in needs
    assert "app.state (line 3)" in needs


def test_a_condition_that_decides_is_marked(dsn: str) -> None:
    laid(
        dsn,
        SHOP
        + """
        create function peek() returns boolean language plpgsql as $$
        begin
          perform pg_notify('peeked', '');
          return true;
        end $$;
        create trigger e_peek after insert on orders for each row when (peek()) execute function audit();
        """,
    )
    found = surveyed(dsn)
    [judgement] = [each for each in found.judgements if each.trigger.name == "e_peek"]
    [reason] = [each for each in document(found).triggers[-1].reasons if each.rule == "notifies"]
    assert reason.via == ("WHEN", "public.peek:3")
    assert reason.code == "perform pg_notify('peeked', '');"
    when, _, callee = explain(found, judgement).passages
    assert [line.rules for line in when.lines] == [("notifies",)]
    assert [(line.number, line.rules) for line in callee.lines if line.rules] == [(3, ("notifies",))]
