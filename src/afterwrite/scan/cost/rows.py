"""Values for rows that nobody wrote: plausible ones for a column, and candidates for a condition that it must meet.

Pure. A value is text as the type's input function reads it. Whether a candidate meets a condition is not decided here:
the server is asked. So a guess may be wrong, and a shape that is missing only leaves a table without rows.
"""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import msgspec

_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
_NAMESPACE = uuid.UUID("6f1d9f0e-3c1b-4b0c-9a51-7c3a6d2f8e10")
_TEXTS = frozenset({"text", "varchar", "bpchar", "citext", "name"})
_INTEGERS = {"int2": 30_000, "int4": 2_000_000_000, "int8": 2_000_000_000, "oid": 2_000_000_000}
# Shapes that conditions on texts often ask for.
_SHAPES = (
    *(
        "person@example.org",
        "https://example.org/a",
        "example.org",
        "example",
        "Example",
        "EXAMPLE",
        "a-slug",
        "a_name",
    ),
    *("A", "a", "1", "0", "AB", "de", "DE", "en-GB", "EUR", "ABC", "ABCD", "12345", "1234567890", "+491701234567"),
    *("#a1b2c3", "a1b2c3", "192.0.2.1", "2024-06-15", "12:30", "/a/b", "1.0.0", "{}", "de_DE", "Europe/Berlin", ""),
    *("DE89370400440532013000", "0x52908400098527886e0f7030069857d2e4169ee7", "550e8400-e29b-41d4-a716-446655440000"),
)
_MOMENTS = ("today", "tomorrow", "yesterday", "1990-05-05", "2024-06-15", "2099-01-01", "2000-01-01")


class Type(msgspec.Struct, frozen=True, kw_only=True):
    """A type as pg_type has it: kind b, d (domain), e (enum), r (range), m (multirange) or c (composite)."""

    oid: int
    schema: str
    name: str
    kind: str
    category: str
    base: int | None = None
    modifier: int = -1
    element: int | None = None
    labels: Sequence[str] = ()
    checks: Sequence[str] = ()
    bound: int | None = None
    fields: Sequence[int] = ()


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """A column to be filled: its type and modifier."""

    name: str
    type: int
    modifier: int = -1


class Values:
    """Makes values of the types of one database."""

    def __init__(self, types: Mapping[int, Type]) -> None:
        self._types = types

    def base(self, slot: Slot) -> tuple[Type | None, int, tuple[str, ...]]:
        """What a column's type is under its domains: the type, its modifier and the domains' conditions."""
        found, modifier = self._types.get(slot.type), slot.modifier
        checks: list[str] = []
        while found is not None and found.kind == "d":
            checks += found.checks
            modifier = found.modifier if modifier < 0 else modifier
            found = self._types.get(found.base or 0)
        return found, modifier, tuple(checks)

    def plain(self, slot: Slot, number: int) -> str | None:
        """A plausible value, another for another number where the type has so many; None for a type we do not know."""
        found, modifier, _ = self.base(slot)
        return None if found is None else self._plain(found, modifier, slot.name, number)

    def _plain(self, kind: Type, modifier: int, name: str, number: int) -> str | None:
        if kind.kind == "e":
            return kind.labels[number % len(kind.labels)] if kind.labels else None
        if kind.kind == "c":
            parts = [self._of(oid, name, number) for oid in kind.fields]
            return "(" + ",".join("" if part is None else _within(part) for part in parts) + ")"
        if kind.kind == "r" and kind.bound is not None:
            low, high = self._of(kind.bound, name, number), self._of(kind.bound, name, number + 1)
            return None if low is None or high is None else f"[{_within(low)},{_within(high)})"
        if kind.kind == "m":
            return "{}"
        if kind.category == "A" and kind.element is not None:
            part = self._of(kind.element, name, number, modifier)
            return None if part is None else "{" + _within(part) + "}"
        if kind.name in _TEXTS:
            return _text(kind.name, modifier, name, number)
        if kind.name in _INTEGERS:
            return str((1 + number) % _INTEGERS[kind.name])
        if kind.name == "numeric":
            return _numeric(modifier, number)
        make = _MAKERS.get(kind.name)
        return None if make is None else make(name, number, max(modifier, 0))

    def _of(self, oid: int, name: str, number: int, modifier: int = -1) -> str | None:
        return self.plain(Slot(name=name, type=oid, modifier=modifier), number)

    def candidates(self, slot: Slot, conditions: str, *, many: int = 8) -> list[str]:
        """Values worth trying where this SQL (a CHECK, a partition's bounds) must hold: first what it names itself.

        ``many`` is how many values are made of each pattern, and how many plain ones come at the end.
        """
        kind, modifier, checks = self.base(slot)
        if kind is None:
            return []
        conditions = " ".join((conditions, *checks))
        texts = list(dict.fromkeys(text.replace("''", "'") for text in re.findall(r"'((?:[^']|'')*)'", conditions)))
        numbers = list(dict.fromkeys(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", conditions)))
        plain = [value for number in range(many) if (value := self._plain(kind, modifier, slot.name, number))]
        made = [*self._tailored(kind, slot, texts, numbers, many), *plain]
        if kind.name in _TEXTS and modifier > 4:
            made = [value for value in made if len(value) <= modifier - 4]
        return list(dict.fromkeys(made))

    def _tailored(
        self, kind: Type, slot: Slot, texts: Sequence[str], numbers: Sequence[str], many: int
    ) -> Iterator[str]:
        if kind.kind == "e":
            yield from kind.labels
        elif kind.name in _TEXTS:
            yield from _tailored_texts(texts, numbers, many)
        elif kind.name in _INTEGERS or kind.name in ("numeric", "float4", "float8", "money"):
            yield from _tailored_numbers(texts, numbers, whole=kind.name in _INTEGERS)
        elif kind.category == "D":
            yield from (text for text in texts if re.search(r"\d", text))
            yield from _MOMENTS
        elif kind.name in ("json", "jsonb"):
            yield from _tailored_documents(texts)
        elif kind.name == "bool":
            yield from ("t", "f")
        elif kind.category == "A" and kind.element is not None:
            inner = Slot(name=slot.name, type=kind.element)
            parts = self.candidates(inner, " ".join(_literal(text) for text in texts), many=2)
            yield from ("{" + _within(part) + "}" for part in parts)
            yield "{" + ",".join(_within(part) for part in parts[:2]) + "}"
            yield "{}"
        elif kind.kind in ("r", "m"):
            yield from texts
        else:
            yield from texts


GUESSES = ("1", "a", "{}", "()", "[1,2]", "(1,2)", "127.0.0.1", "a=>1", "<a/>", "2024-01-01", "\\x01", "")
"""Tried for types of which nothing is known."""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _within(text: str) -> str:
    """A value as it stands inside an array, a composite value or a range."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _code(number: int, letters: str, width: int) -> str:
    made = ""
    for _ in range(width):
        number, place = divmod(number, len(letters))
        made = letters[place] + made
    return made


def _text(kind: str, modifier: int, name: str, number: int) -> str:
    limit = modifier - 4 if modifier > 4 else 63 if kind == "name" else 0
    if 0 < limit <= 3:
        return _code(number, string.ascii_uppercase, limit)
    if "email" in name and (not limit or limit > 24):
        return f"person{number}@example.org"
    if ("url" in name or name.endswith("uri")) and (not limit or limit > 32):
        return f"https://example.org/{number}"
    made = f"{name.replace('_', ' ')} of row {number}"
    if limit and len(made) > limit:
        made = _code(number, string.ascii_uppercase + string.digits, min(limit, 8))
    return made


def _numeric(modifier: int, number: int) -> str:
    if modifier < 4:
        return f"{number + 1}.5"
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF
    scale = scale - 2048 if scale >= 1024 else scale  # since 15 a scale may be negative
    whole = (number + 1) % 10 ** max(1, min(precision - scale, 9)) if precision > scale else 0
    return f"{whole}.{'25'[:scale]}" if scale > 0 else str(whole)


_MAKERS: dict[str, Callable[[str, int, int], str]] = {
    "float4": lambda _name, number, _: f"{number + 1}.5",
    "float8": lambda _name, number, _: f"{number + 1}.5",
    "money": lambda _name, number, _: str(number + 1),
    "bool": lambda _name, number, _: "ft"[number % 2],
    "date": lambda _name, number, _: f"{_EPOCH + timedelta(days=number % 20_000):%Y-%m-%d}",
    "timestamp": lambda _name, number, _: f"{_EPOCH + timedelta(hours=number):%Y-%m-%d %H:%M:%S}",
    "timestamptz": lambda _name, number, _: f"{_EPOCH + timedelta(hours=number):%Y-%m-%d %H:%M:%S}+00",
    "time": lambda _name, number, _: f"{_EPOCH + timedelta(seconds=number):%H:%M:%S}",
    "timetz": lambda _name, number, _: f"{_EPOCH + timedelta(seconds=number):%H:%M:%S}+00",
    "interval": lambda _name, number, _: f"{number + 1} minutes",
    "uuid": lambda name, number, _: str(uuid.uuid5(_NAMESPACE, f"{name} {number}")),
    "json": lambda name, number, _: f'{{"name": "{_safe(name)} {number}", "number": {number}}}',
    "jsonb": lambda name, number, _: f'{{"name": "{_safe(name)} {number}", "number": {number}}}',
    "jsonpath": lambda _name, _number, _: "$.a",
    "bytea": lambda _name, number, _: f"\\x{number:016x}",
    "inet": lambda _name, number, _: f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}",
    "cidr": lambda _name, number, _: f"10.{number >> 8 & 255}.{number & 255}.0/24",
    "macaddr": lambda _name, number, _: f"08:00:2b:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}",
    "macaddr8": lambda _name, number, _: (
        f"08:00:2b:00:00:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
    ),
    "bit": lambda _name, number, width: _code(number, "01", width or 1),
    "varbit": lambda _name, number, width: _code(number, "01", min(width or 16, 16)),
    "char": lambda _name, number, _: string.ascii_letters[number % 52],
    "tsvector": lambda _name, number, _: f"'row':1 '{number}':2",
    "tsquery": lambda _name, number, _: f"'{number}'",
    "point": lambda _name, number, _: f"({number},1)",
    "lseg": lambda _name, number, _: f"[({number},1),(2,3)]",
    "box": lambda _name, number, _: f"({number + 2},3),({number},1)",
    "path": lambda _name, number, _: f"[({number},1),(2,3)]",
    "polygon": lambda _name, number, _: f"(({number},1),(2,3),(4,0))",
    "circle": lambda _name, number, _: f"<({number},1),2>",
    "line": lambda _name, number, _: f"{{1,2,{number}}}",
    "pg_lsn": lambda _name, number, _: f"0/{number:X}",
    "regclass": lambda _name, _number, _: "pg_catalog.pg_class",
    "regtype": lambda _name, _number, _: "integer",
    "hstore": lambda _name, number, _: f"number=>{number}",
    "ltree": lambda _name, number, _: f"top.n{number}",
}


def _safe(name: str) -> str:
    return re.sub(r"[^\w ]", "", name)


def _tailored_texts(texts: Sequence[str], numbers: Sequence[str], many: int) -> Iterator[str]:
    yield from texts
    for text in texts:
        yield from from_pattern(text, many)
        if "%" in text or "_" in text:
            yield text.replace("%", "x").replace("_", "x")
    for number in numbers:
        length = int(float(number))
        for each in (length, length + 1, length - 1):
            if 0 < each <= 500:
                yield from (_code(place, string.ascii_lowercase, each) for place in range(min(many, 4)))
                yield _code(0, "0123456789", each)
    yield from _SHAPES


def _tailored_numbers(texts: Sequence[str], numbers: Sequence[str], *, whole: bool) -> Iterator[str]:
    named = [float(text) for text in (*numbers, *texts) if re.fullmatch(r"-?\d+(\.\d+)?", text) and len(text) < 16]
    steps = (0, 1, -1) if whole else (0, 1, -1, 0.01, -0.01)
    for value in (*(sign * value + step for value in named for sign in (1, -1) for step in steps), 1, 0, -1, 10, 100):
        yield str(int(value)) if whole or value == int(value) else f"{value:.4f}".rstrip("0")
    for low, high in pairwise(named):
        middle = (low + high) / 2
        yield str(int(middle)) if whole else f"{middle:.4f}"
    if not whole:
        yield "0.5"


def _tailored_documents(texts: Sequence[str]) -> Iterator[str]:
    keys = [text for text in texts if re.fullmatch(r"[\w-]+", text)]
    for value in ('"a"', "1", "{}", "[]", "true", '"2024-01-01"'):
        yield "{" + ", ".join(f'"{key}": {value}' for key in keys) + "}"
    yield from ("{}", "[]", '["a"]', "1", '"a"', "true")


# Texts that match a pattern ------------------------------------------------------------------------------------------


def from_pattern(pattern: str, many: int) -> list[str]:
    """Texts that a regular expression may be meant to match; none where it uses what is not understood here."""
    if not re.search(r"[\[\](){}\\^$.*+?|]", pattern):
        return []
    made: list[str] = []
    for seed in range(many):
        try:
            made.append(_Pattern(pattern, random.Random(seed)).text())
        except _NotUnderstood:
            break
    return list(dict.fromkeys(made))


class _NotUnderstood(Exception):  # noqa: N818 - no error: another way is taken
    pass


_CLASSES = {"d": string.digits, "w": string.ascii_lowercase + string.digits + "_", "s": " "}
_NAMED = {
    "alpha": string.ascii_letters,
    "digit": string.digits,
    "alnum": string.ascii_letters + string.digits,
    "upper": string.ascii_uppercase,
    "lower": string.ascii_lowercase,
    "space": " ",
    "xdigit": "0123456789abcdef",
    "punct": "-.,",
    "word": string.ascii_lowercase + "_",
}
_LONGEST = 5_000
_PRINTABLE = string.ascii_letters + string.digits + "-_.@ /+:"


class _Pattern:
    """One text for a pattern: literals, classes, groups, choices and repetition; anchors stand for nothing."""

    def __init__(self, pattern: str, choose: random.Random) -> None:
        self._pattern = pattern.removeprefix("***:")
        self._place = 0
        self._length = 0
        self._choose = choose

    def text(self) -> str:
        made = self._choice()
        if self._place < len(self._pattern):
            raise _NotUnderstood
        return made

    def _peek(self) -> str:
        return self._pattern[self._place] if self._place < len(self._pattern) else ""

    def _take(self) -> str:
        taken = self._peek()
        if not taken:
            raise _NotUnderstood
        self._place += 1
        return taken

    def _choice(self) -> str:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence())
        return self._choose.choice(branches)

    def _sequence(self) -> str:
        made: list[str] = []
        while (following := self._peek()) and following not in "|)":
            piece = self._piece()
            least, most = self._repetition()
            for _ in range(self._choose.randint(least, most)):
                made.append(piece())
                self._length += len(made[-1])
                if self._length > _LONGEST:
                    raise _NotUnderstood
        return "".join(made)

    def _repetition(self) -> tuple[int, int]:
        match self._peek():
            case "*" | "+" | "?":
                least, most = {"*": (0, 3), "+": (1, 4), "?": (0, 1)}[self._take()]
            case "{":
                found = re.compile(r"\{(\d+)(,(\d*))?\}").match(self._pattern, self._place)
                if found is None:
                    raise _NotUnderstood
                self._place = found.end()
                least = int(found[1])
                most = least if found[2] is None else int(found[3]) if found[3] else least + 3
            case _:
                return 1, 1
        if self._peek() in ("?", "+"):  # not greedy, or possessive
            self._take()
        if most > 1_000:
            raise _NotUnderstood
        return least, most

    def _piece(self) -> Callable[[], str]:
        taken = self._take()
        match taken:
            case "^" | "$":
                return str
            case "(":
                if self._peek() == "?":
                    if not self._pattern.startswith("?:", self._place):
                        raise _NotUnderstood  # a look ahead, or an embedded option
                    self._place += 2
                inner = self._choice()
                if self._take() != ")":
                    raise _NotUnderstood
                return lambda: inner  # a repeated group repeats its text: it need only match
            case "[":
                letters = self._bracket()
                return lambda: self._choose.choice(letters)
            case ".":
                return lambda: self._choose.choice(string.ascii_lowercase)
            case "\\":
                return self._escape()
            case _:
                return lambda: taken

    def _escape(self) -> Callable[[], str]:
        taken = self._take()
        if taken in _CLASSES:
            letters = _CLASSES[taken]
            return lambda: self._choose.choice(letters)
        if taken in "AZmMyYbB":  # ends of words and of the text
            return str
        if taken.isalnum():
            raise _NotUnderstood
        return lambda: taken

    def _bracket(self) -> str:
        negated = self._peek() == "^"
        if negated:
            self._take()
        letters: list[str] = []
        while True:
            taken = self._take()
            if taken == "]" and letters:
                break
            if taken == "[" and self._peek() == ":":
                end = self._pattern.find(":]", self._place)
                named = _NAMED.get(self._pattern[self._place + 1 : end]) if end > 0 else None
                if named is None:
                    raise _NotUnderstood
                self._place = end + 2
                letters += named
            elif taken == "\\":
                following = self._take()
                letters += _CLASSES.get(following, following)
            elif self._peek() == "-" and self._pattern[self._place + 1 : self._place + 2] not in ("", "]"):
                self._take()
                letters += [chr(code) for code in range(ord(taken), min(ord(self._take()), ord(taken) + 500) + 1)]
            else:
                letters.append(taken)
        allowed = [letter for letter in _PRINTABLE if letter not in letters] if negated else letters
        if not allowed:
            raise _NotUnderstood
        return "".join(allowed)


def tied_together(slots: Iterable[str], conditions: Iterable[Sequence[str]]) -> list[list[str]]:
    """Groups of columns that conditions (by the columns that each looks at) tie together."""
    groups: list[set[str]] = []
    wanted = set(slots)
    for columns in conditions:
        tied = wanted.intersection(columns)
        if not tied:
            continue
        touching = [group for group in groups if group & tied]
        groups = [group for group in groups if not group & tied]
        groups.append(tied.union(*touching))
    return [sorted(group) for group in groups]
