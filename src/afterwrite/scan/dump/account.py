"""What became of a dump's statements: loaded, left out, refused or failed, counted by kind and with their lines."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath

import msgspec

from afterwrite.errors import Finding, Severity
from afterwrite.scan.dump.sorting import Deed

_LINES_SHOWN = 5
_SHOWN = 8


class LeftOut(msgspec.Struct, frozen=True, kw_only=True):
    """Statements of a kind that were not run, and the lines of the first few.

    ``deed`` is ``needless`` (no verdict hangs on it), ``refused`` (it may do more than define a schema) or
    ``unreadable``; ``why`` is said of the first one.
    """

    deed: Deed
    kind: str
    count: int
    lines: tuple[int, ...]
    why: str = ""


class Tally:
    """Counts what is left out, as it is met."""

    def __init__(self) -> None:
        self._lines: defaultdict[tuple[Deed, str], list[int]] = defaultdict(list)
        self._counts: Counter[tuple[Deed, str]] = Counter()
        self._why: dict[tuple[Deed, str], str] = {}

    def add(self, line: int, kind: str, deed: Deed, why: str = "") -> None:
        """One more, at this line."""
        key = deed, shortened(kind, 60)
        self._counts[key] += 1
        self._why.setdefault(key, shortened(why, 200))
        if len(self._lines[key]) < _LINES_SHOWN:
            self._lines[key].append(line)

    def left_out(self) -> tuple[LeftOut, ...]:
        """All of it: refused first, then unreadable, then needless; the most frequent kinds first."""
        order = [Deed.REFUSED, Deed.UNREADABLE, Deed.NEEDLESS]
        keys = sorted(self._counts, key=lambda key: (order.index(key[0]), -self._counts[key], key[1]))
        return tuple(
            LeftOut(
                deed=key[0], kind=key[1], count=self._counts[key], lines=tuple(self._lines[key]), why=self._why[key]
            )
            for key in keys
        )


class Unloaded(msgspec.Struct, frozen=True, kw_only=True):
    """A definition that the server did not take; ``refused`` when it was our bounds that stopped it."""

    line: int
    kind: str
    text: str
    why: str
    refused: bool = False


class DumpReport(msgspec.Struct, frozen=True, kw_only=True):
    """The account of a load. ``loaded`` and ``failed`` count statements by kind; ``untried`` were not reached in time.

    ``not_loaded`` are the first of those that failed.
    ``missing_extensions`` were not to be had here (or never are, because they reach files or networks). ``stand_ins``
    are parts that the dump only names. ``bare_tables`` were loaded without defaults and checks. ``stubbed_languages``
    counts functions that are kept as text.
    """

    file: str
    loaded: Mapping[str, int]
    left_out: tuple[LeftOut, ...] = ()
    failed: Mapping[str, int] = {}
    not_loaded: tuple[Unloaded, ...] = ()
    untried: int = 0
    extensions: tuple[str, ...] = ()
    missing_extensions: tuple[str, ...] = ()
    missing_roles: tuple[str, ...] = ()
    stubbed_languages: Mapping[str, int] = {}
    stand_ins: tuple[str, ...] = ()
    bare_tables: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()

    def of(self, deed: Deed) -> list[LeftOut]:
        """What was left out for this reason."""
        return [each for each in self.left_out if each.deed is deed]

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return "standard input" if self.file == "-" else PurePath(self.file).name

    @property
    def missing(self) -> Finding:
        """What no dump tells."""
        return Finding(
            rule="dump-without-statistics",
            severity=Severity.INFO,
            where="rows written, scans, time and WAL",
            text="no statistics: a dump has none. Whether a log is only appended to in practice is told by the live "
            "database alone",
            remedy="scan the live database",
        )

    def findings(self) -> Iterator[Finding]:
        """What a reader of the verdicts should know of it, in sentences."""
        yield from self._whole_findings()
        yield from self._parts_findings()

    def _whole_findings(self) -> Iterator[Finding]:
        if self.untried:
            yield self._finding(
                "dump-too-slow",
                Severity.WARNING,
                f"the dump took too long to load: {self.untried:,} statements were not tried",
                "dump fewer schemas at a time: pg_dump --schema-only -n SCHEMA",
            )
        if len(self.databases) > 1:
            yield self._finding(
                "dump-of-several-databases",
                Severity.WARNING,
                f"it holds {len(self.databases)} databases ({_listed(self.databases)}), and all were loaded into one: "
                "what has the same name in two of them was taken from the first",
                "scan a dump of each: pg_dump --schema-only DATABASE",
            )
        refused = self.of(Deed.REFUSED)
        if refused:
            shown = ", ".join(f"{each.count:,} {each.kind} ({_lines(each)})" for each in refused[:_SHOWN])
            more = f", and {len(refused) - _SHOWN} kinds more" if len(refused) > _SHOWN else ""
            text = f"statements that are no plain definitions were not run: {shown}{more}"
            yield self._finding("dump-statements-refused", Severity.WARNING, text)
        for each in self.of(Deed.UNREADABLE):
            text = f"{each.count:,} {each.kind} could not be read ({_lines(each)}: {each.why})"
            yield self._finding("dump-statement-unreadable", Severity.WARNING, text)

    def _parts_findings(self) -> Iterator[Finding]:
        if self.missing_extensions:
            yield self._finding(
                "dump-missing-extension",
                Severity.INFO,
                f"not created here: {_listed(self.missing_extensions)}. Their types hold text, and their functions are "
                "there by name alone",
            )
        if self.missing_roles:
            text = f"roles that the dump only names: {_listed(self.missing_roles)}"
            yield self._finding("dump-missing-role", Severity.INFO, text)
        if self.stand_ins:
            yield self._finding(
                "dump-stand-in", Severity.INFO, f"parts that the dump only names: {_listed(self.stand_ins)}"
            )
        for language, count in self.stubbed_languages.items():
            yield self._finding(
                "dump-language",
                Severity.INFO,
                f"{_times(count, 'function')} in {language}, which is not here: kept as text and never run; triggers "
                "that call them are judged as on the live database",
            )
        if self.bare_tables:
            yield self._finding(
                "dump-bare-table",
                Severity.WARNING,
                f"{_times(len(self.bare_tables), 'table')} loaded without defaults, checks and references: "
                f"{_listed(self.bare_tables)}",
            )
        kinds: defaultdict[str, list[Unloaded]] = defaultdict(list)
        for each in self.not_loaded:
            kinds[each.kind].append(each)
        for kind, count in self.failed.items():
            each = kinds[kind]
            shown = "; ".join(f"line {one.line}, {one.why}" for one in each[:_LINES_SHOWN])
            more = f"; and {count - _LINES_SHOWN:,} more (--json lists them: subject.dump.not_loaded)"
            yield self._finding(
                "dump-not-loaded",
                Severity.WARNING if kind in _MATTER else Severity.INFO,
                f"{count:,} {kind} could not be loaded: {shown}{more if count > _LINES_SHOWN else ''}",
            )

    def _finding(self, rule: str, severity: Severity, text: str, remedy: str | None = None) -> Finding:
        return Finding(rule=rule, severity=severity, where=self.name, text=text, remedy=remedy)


# Triggers, and what they stand on.
_MATTER = ("CREATE TRIGGER", "CREATE TABLE", "CREATE FUNCTION", "CREATE FOREIGN TABLE", "CREATE VIEW")


def _times(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _lines(each: LeftOut) -> str:
    more = ", …" if each.count > len(each.lines) else ""
    return f"line{'s' if each.count > 1 else ''} {', '.join(map(str, each.lines))}{more}"


def _listed(names: Iterable[str]) -> str:
    shown = list(names)
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN + 1 else ""
    return ", ".join(shown[: _SHOWN if more else None]) + more


def shortened(text: str, most: int = 90) -> str:
    """The beginning of somebody else's words on one line, without what could move a terminal's cursor."""
    flat = " ".join("".join(letter if letter.isprintable() else " " for letter in text[: 4 * most]).split())
    return flat if len(flat) <= most else f"{flat[: most - 3]}..."
