"""What is made of a run: tables, a page, a document that keeps its prose, and the difference to another run."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from typed import typed

from afterwrite.bench import words
from afterwrite.bench.claims import Claim, Promise, Report, Took, compare, held_to, note, share_left
from afterwrite.bench.compared import Trend, compare_runs
from afterwrite.bench.page import to_html
from afterwrite.errors import ExitCode, UsageError

_MACHINE: dict[str, str | int | float] = {
    "cores": 2,
    "memory_gib": 8.0,
    "system": "Linux x86_64",
    "python": "3.13.1",
    "postgresql": "18.1",
}


def _report(speed: float = 1.0) -> Report:
    def claims() -> list[Claim]:
        return [
            compare(
                "server time <of> a write",
                "µs",
                [100.0, 110.0, 90.0],
                [20.0 / speed, 21.0 / speed, 19.5 / speed],
                target=0.2,
                promise=Promise.SERVER_TIME,
            ),
            share_left("what logging adds", "µs", [10.0] * 3, [110.0] * 3, [11.0, 12.0, 10.0], target=0.1),
            held_to("p50", "ms", 50.0, [30.0, 31.0, 32.0], at_most=True, promise=Promise.FEED_P50),
            compare("flat out", "tx/s", [10.0, 10.0, 10.0], [9.0, 11.0, 10.0]),
            note("rows", "rows", [5.0]),
        ]

    return Report(
        version="1.2.3",
        began_at="2026-01-02T03:04:05+00:00",
        seconds=12.0,
        quick=False,
        machine=_MACHINE,
        parts=[
            Took(part="writes", seconds=10.0, settings={"rounds": 3, "seed": 1}),
            Took(part="pages", seconds=0.0, settings={}, left_out="pages is left out: there is no browser"),
        ],
        claims=[msgspec.structs.replace(claim, part="writes") for claim in claims()],
    )


def test_a_page_says_every_figure_and_needs_nothing_else() -> None:
    page = to_html(_report())

    assert "server time &lt;of&gt; a write" in page
    assert "there is no browser" in page
    assert "not measured" in page
    assert "100 · 110 · 90.0" in page
    assert "no difference seen" in page
    assert not re.search(r"<script|https?://|<link|src=", page)
    assert "prefers-color-scheme: dark" in page


def test_a_document_keeps_its_prose_and_the_figures_of_parts_that_were_not_measured() -> None:
    document = "# Ours\n\nWhy.\n\n<!-- measured: writes -->\nold\n<!-- end -->\n\nMore.\n\n"
    document += "<!-- measured: run -->\nbefore\n<!-- end -->\n"
    document += "<!-- measured: api -->\nkept\n<!-- end -->\n"

    filled = words.refill(document, _report())

    assert filled.startswith("# Ours\n\nWhy.\n\n<!-- measured: writes -->\n\n| claim ")
    assert "old" not in filled
    assert "\nFrom a run on 2026-01-02: 2 cores" in filled
    assert ": writes (10 s): rounds 3, seed 1\n" in filled
    kept = "<!-- measured: run -->\nbefore\n<!-- end -->\n<!-- measured: api -->\nkept\n<!-- end -->\n"
    assert filled.endswith(f"\n\nMore.\n\n{kept}")
    assert words.refill(filled, _report()) == filled
    whole = filled.replace("<!-- measured: api -->\nkept\n<!-- end -->\n", "")
    assert "before" not in words.refill(whole, _report())
    assert words.refill(words.to_markdown(_report()), _report()) == words.to_markdown(_report())
    with pytest.raises(UsageError, match="no place"):
        words.refill("# Nothing\n", _report())


def test_what_got_slower_beyond_the_doubt_is_told() -> None:
    same = compare_runs(_report(), _report())
    slower = compare_runs(_report(), _report(speed=0.5))
    faster = compare_runs(_report(), _report(speed=2.0))

    assert {change.trend for change in same.changes} == {Trend.SAME}
    assert [change.claim for change in slower.changes if change.trend is Trend.WORSE] == ["server time <of> a write"]
    assert slower.changes[0].ratio == pytest.approx(2.0)
    assert (slower.worse, faster.worse) == (True, False)
    assert faster.changes[0].trend is Trend.BETTER


def test_the_command_shows_and_compares_runs_that_were_kept(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_bytes(msgspec.json.encode(_report()))
    after.write_bytes(msgspec.json.encode(_report(speed=0.5)))
    page, document = tmp_path / "run.html", tmp_path / "run.md"

    shown = typed("bench", "show", before, "--html", page, "--markdown", document, env={"COLUMNS": "80"})
    assert shown.returncode == ExitCode.OK, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert "no difference seen" not in shown.stdout.splitlines()[0]
    assert page.read_text().startswith("<!doctype html>")
    assert "<!-- measured: promises -->" in document.read_text()

    compared = typed("bench", "compare", before, after)
    assert compared.returncode == ExitCode.GATE
    assert "worse" in compared.stdout
    assert typed("bench", "compare", after, before).returncode == ExitCode.OK
    assert typed("bench", "compare", before, page).returncode == ExitCode.USAGE
    assert typed("bench", "--only", "nothing").returncode == ExitCode.USAGE
