"""Damage, decoration and additions: what is done to bodies, and what must hold of the verdict afterwards.

Pure, and seeded: the same random.Random makes the same mutations. It knows SQL by its own eyes, not by the scanner's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

from afterwrite.scan.classify import Verdict

_PIECE = re.compile(
    r"--[^\n]*|/\*.*?\*/|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|[eE]?'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[^\W\d]\w*|\d[\w.]*|\s+"
    r"|:=|::|(?:(?!--|/\*)[-+*/<>=~!@#%^&|`?])+|.",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d]\w*\Z")
_VOCABULARY = (
    *("raise", "exception", "return", "null", "new", "old", "execute", "insert", "into", "update", "delete", "from"),
    *(
        "begin",
        "end",
        "if",
        "then",
        "else",
        "elsif",
        "loop",
        "case",
        "when",
        "declare",
        "perform",
        "select",
        "not",
        "or",
    ),
    *(";", ";", "(", ")", ",", ":=", "=", "<>", "||", "::", "'", '"', "--", "/*", "*/", "$$", "$function$", "0", "'x'"),
    *("tg_op", "tg_argv[0]", "strict", "returning", "where", "true", "false", "is", "and", "with", "values", "set"),
)
_NOISE = "();'\"$:=,.%|\\é0\t\u00a0\u202e\u0301\U0001f9e8\x01\x7f{}[]<>~@#&^`?*/+-"
_FRIGHTFUL = ("raise exception 'no';", "it's", 'a "quoted', "$$", "return null;", "update x set y = 1", "begin", "end;")


class Kind(StrEnum):
    """What the mutation does to the meaning: anything, nothing, or adds an effect of its own."""

    DAMAGE = "damage"
    DECORATION = "decoration"
    ADDITION = "addition"


class Mutation(NamedTuple):
    """A mutated body. ``floor``: a looser verdict is wrong. ``extreme``: it may be too much for the parser."""

    kind: Kind
    name: str
    body: str
    floor: Verdict = Verdict.RETIRE
    extreme: bool = False


class Ground(NamedTuple):
    """Where a body runs: its language, its table (if it is one), another table with a column of it, other bodies."""

    plpgsql: bool
    trigger: bool
    before_row: bool
    home: str | None
    other: str
    column: str
    donors: Sequence[str]


def mutate(body: str, ground: Ground, rng: random.Random) -> Mutation:
    """A mutation: of ten, seven damages, one or two decorations and one or two additions."""
    chance = rng.random()
    if not ground.plpgsql or chance < 0.7:
        return damage(body, ground, rng)
    return decorate(body, rng) if chance < 0.85 else add(body, ground, rng)


def pieces(body: str) -> list[str]:
    """The body in tokens, comments and blanks: joined they are the body."""
    return [match[0] for match in _PIECE.finditer(body)]


# Damage ---------------------------------------------------------------------------------------------------------------


def damage(body: str, ground: Ground, rng: random.Random) -> Mutation:
    """One to three damages one after another."""
    names: list[str] = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name, change = rng.choice(_DAMAGES)
        body = change(body, ground, rng)
        names.append(name)
    return Mutation(kind=Kind.DAMAGE, name=names[0] if len(names) == 1 else "several", body=body)


def _tokens(body: str) -> tuple[list[str], list[int]]:
    listed = pieces(body)
    return listed, [place for place, piece in enumerate(listed) if not piece.isspace()] or [0]


def _swap(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    first, second = rng.choice(places), rng.choice(places)
    if listed:
        listed[first], listed[second] = listed[second], listed[first]
    return "".join(listed)


def _delete(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    first = rng.randrange(len(places))
    for place in places[first : first + rng.choice((1, 1, 1, 2, 4))]:
        if listed:
            listed[place] = " "
    return "".join(listed)


def _delete_statement(body: str, _: Ground, rng: random.Random) -> str:
    ends = [place for place, letter in enumerate(body) if letter == ";"]
    if len(ends) < 2:
        return body
    first = rng.randrange(len(ends) - 1)
    return body[: ends[first] + 1] + body[ends[first + 1] + 1 :]


def _swap_statements(body: str, _: Ground, rng: random.Random) -> str:
    parts = body.split(";")
    first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
    parts[first], parts[second] = parts[second], parts[first]
    return ";".join(parts)


def _duplicate(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    first = rng.randrange(len(places))
    span = [listed[place] for place in places[first : first + rng.choice((1, 2, 8))] if listed]
    to = rng.choice(places)
    return "".join((*listed[:to], " ", " ".join(span), " ", *listed[to:]))


def _replace(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    if listed:
        listed[rng.choice(places)] = f" {rng.choice(_VOCABULARY)} "
    return "".join(listed)


def _insert(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    listed.insert(rng.choice(places), f" {rng.choice(_VOCABULARY)} ")
    return "".join(listed)


def _alike(body: str, ground: Ground, rng: random.Random) -> str:
    """One token for another of its kind: a word for a word, a literal for a literal, a sign for a sign."""
    listed, places = _tokens(body)
    to = rng.choice(places)
    pool = listed if rng.random() < 0.7 else pieces(rng.choice(ground.donors))
    same = [piece for piece in pool if listed and _sort(piece) == _sort(listed[to])]
    if same:
        listed[to] = rng.choice(same)
    return "".join(listed)


def _sort(piece: str) -> str:
    if _WORD.match(piece):
        return "keyword" if piece.lower() in _VOCABULARY else "word"
    return "literal" if piece[0] in "'0123456789" else "blank" if piece.isspace() else "sign"


def _negate(body: str, _: Ground, rng: random.Random) -> str:
    """A condition turned round, made certain, or narrowed."""
    listed = pieces(body)
    places = [place for place, piece in enumerate(listed) if piece.lower() in ("if", "when", "elsif", "where")]
    if places:
        listed.insert(
            rng.choice(places) + 1, rng.choice((" not ", " true or ", " new is not null and ", " random() < 2 and "))
        )
    return "".join(listed)


def _milden(body: str, _: Ground, rng: random.Random) -> str:
    """Without its refusals, or without its changes of the row: then the effect is really gone."""
    what, instead = rng.choice(_MILD)
    return re.sub(what, instead, body, flags=re.IGNORECASE)


def _double_statement(body: str, _: Ground, rng: random.Random) -> str:
    parts = body.split(";")
    parts.insert(rng.randrange(len(parts)), rng.choice(parts[1:-1] or parts))
    return ";".join(parts)


def _return_early(body: str, _: Ground, rng: random.Random) -> str:
    ends = [place for place, letter in enumerate(body) if letter == ";"] or [0]
    place = rng.choice(ends) + 1
    statement = rng.choice(("return new;", "return old;", "return null;", "return;"))
    return f"{body[:place]} {statement}{body[place:]}"


def _splice(body: str, ground: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    donor = pieces(rng.choice(ground.donors))
    first = rng.randrange(len(donor) or 1)
    listed[rng.choice(places) : 0] = donor[first : first + rng.randint(1, 25)]
    return "".join(listed)


def _truncate(body: str, _: Ground, rng: random.Random) -> str:
    return body[: rng.randrange(len(body) + 1)]


def _noise(body: str, _: Ground, rng: random.Random) -> str:
    letters = list(body)
    for _count in range(rng.choice((1, 1, 3, 12))):
        place = rng.randrange(len(letters) + 1)
        letters[place : place + rng.randint(0, 1)] = rng.choice(_NOISE)
    return "".join(letters)


def _flip_bit(body: str, _: Ground, rng: random.Random) -> str:
    if not body:
        return body
    place = rng.randrange(len(body))
    return body[:place] + chr(ord(body[place]) ^ (1 << rng.randrange(7))) + body[place + 1 :]


def _open_quote(body: str, _: Ground, rng: random.Random) -> str:
    place = rng.randrange(len(body) + 1)
    return body[:place] + rng.choice(("'", '"', "$$", "$q$", "/*", "$function$", "e'\\", "((", "[")) + body[place:]


def _null_byte(body: str, _: Ground, rng: random.Random) -> str:
    place = rng.randrange(len(body) + 1)
    return f"{body[:place]}\0{body[place:]}"


def _repeat(body: str, _: Ground, rng: random.Random) -> str:
    times = rng.choice((2, 3, 3, 40))
    return rng.choice(("\n", ";\n")).join([body] * times)


def _brackets(body: str, _: Ground, rng: random.Random) -> str:
    listed, places = _tokens(body)
    depth = rng.choice((1, 10, 500))
    to = rng.choice(places)
    closed = ")" * (depth - rng.choice((0, 0, 1)))
    middle = listed[to] if listed else "1"
    return "".join((*listed[:to], "(" * depth, middle, closed, *listed[to + 1 :]))


_MILD = (
    (r"\braise\s+exception\b", "raise notice"),
    (r"\breturn\s+null\b", "return new"),
    (r"\bnew\.\S+\s*:?=[^;]*;", "null;"),
    (r"\b(update|delete)\b[^;]*;", "null;"),
)
Damage = Callable[[str, Ground, random.Random], str]
_DAMAGES: tuple[tuple[str, Damage], ...] = (
    ("tokens swapped", _swap),
    ("tokens deleted", _delete),
    ("token for one alike", _alike),
    ("token for one alike", _alike),
    ("token for one alike", _alike),
    ("condition changed", _negate),
    ("statement deleted", _delete_statement),
    ("statement deleted", _delete_statement),
    ("statement deleted", _delete_statement),
    ("made mild", _milden),
    ("statements swapped", _swap_statements),
    ("statement doubled", _double_statement),
    ("early return", _return_early),
    ("tokens doubled", _duplicate),
    ("token replaced", _replace),
    ("token inserted", _insert),
    ("spliced with another body", _splice),
    ("truncated", _truncate),
    ("noise", _noise),
    ("bit flipped", _flip_bit),
    ("quote or bracket left open", _open_quote),
    ("null byte", _null_byte),
    ("repeated", _repeat),
    ("bracketed", _brackets),
)


# Decoration: nothing changes but the looks ----------------------------------------------------------------------------


def decorate(body: str, rng: random.Random) -> Mutation:
    """What changes nothing of the meaning."""
    name, change = rng.choice(_DECORATIONS)
    return Mutation(kind=Kind.DECORATION, name=name, body=change(body, rng), extreme=name in _EXTREME)


def _comments(body: str, rng: random.Random) -> str:
    def comment() -> str:
        fright = rng.choice(_FRIGHTFUL)
        return f" /* {fright} /* nested */ */ " if rng.random() < 0.5 else f" -- {fright}\n"

    listed, places = _tokens(body)
    for place in sorted(rng.sample(places, min(len(places), 5)), reverse=True):
        listed.insert(place, comment())
    return "".join(listed)


def _blanks(body: str, rng: random.Random) -> str:
    listed = pieces(body)
    for place, piece in enumerate(listed):
        if piece.isspace():
            after_comment = place > 0 and listed[place - 1].startswith("--")
            listed[place] = "\n\t" if after_comment else rng.choice((" ", "\n", "\t\n ", "  \r\n"))
    return "".join(listed)


def _capitals(body: str, rng: random.Random) -> str:
    def turn(word: str) -> str:
        return "".join(letter.upper() if rng.random() < 0.5 else letter.lower() for letter in word)

    return "".join(turn(piece) if _WORD.match(piece) and piece.isascii() else piece for piece in pieces(body))


def _wrapped(body: str, rng: random.Random) -> str:
    label = rng.choice(("", "<<outermost>>\n", "declare unused_ text := 'raise exception';\n"))
    return f"{label}begin\n{_block(body)}\nend"


def _idle(body: str, rng: random.Random) -> str:
    return _after_begin(body, rng.choice(("null;", "perform 1;", "if 1 = 2 then null; end if;", "begin null; end;")))


def _huge_comment(body: str, rng: random.Random) -> str:
    return _after_begin(body, f"/* {'x' * rng.choice((100_000, 1_000_000))} */ null;")


def _huge_literal(body: str, rng: random.Random) -> str:
    return _after_begin(body, f"perform '{'y' * rng.choice((100_000, 1_000_000))}';")


def _deep_blocks(body: str, rng: random.Random) -> str:
    depth = rng.choice((20, 150, 600))
    return _after_begin(body, f"{'begin ' * depth}null;{' end;' * depth}")


def _deep_conditions(body: str, rng: random.Random) -> str:
    depth = rng.choice((20, 150, 600))
    return _after_begin(body, f"{'if 1 = 1 then ' * depth}null;{' end if;' * depth}")


def _deep_brackets(body: str, rng: random.Random) -> str:
    depth = rng.choice((20, 500, 3000))
    return _after_begin(body, f"perform {'(' * depth}1{')' * depth};")


_DECORATIONS: tuple[tuple[str, Callable[[str, random.Random], str]], ...] = (
    ("comments", _comments),
    ("blanks", _blanks),
    ("capitals", _capitals),
    ("wrapped in a block", _wrapped),
    ("an idle statement", _idle),
    ("a huge comment", _huge_comment),
    ("a huge literal", _huge_literal),
    ("deep blocks", _deep_blocks),
    ("deep conditions", _deep_conditions),
    ("deep brackets", _deep_brackets),
)
_EXTREME = frozenset({"a huge comment", "a huge literal", "deep blocks", "deep conditions", "deep brackets"})


# Addition: one effect more --------------------------------------------------------------------------------------------


def add(body: str, ground: Ground, rng: random.Random) -> Mutation:
    """An effect that the body surely has from now on, and the verdict that this alone would ask for."""
    choices = [*_ADDED]
    if ground.before_row:
        choices += _ADDED_BEFORE
    fitting = [choice for choice in choices if ground.home is not None or "{home}" not in choice[2]]
    name, floor, statement = rng.choice(fitting)
    said = statement.format(home=ground.home, other=ground.other, column=ground.column)
    outside = "raise" in said or "assert" in said or rng.random() < 0.5  # there no handler of the body's own catches it
    changed = f"begin\n{said}\n{_block(body)}\nend" if outside else _after_begin(body, said)
    return Mutation(kind=Kind.ADDITION, name=name, body=changed, floor=floor)


_ADDED = (
    ("raise", Verdict.KEEP, "raise exception 'no';"),
    ("raise at times", Verdict.KEEP, "if random() < 0.5 then raise exception using message = 'no'; end if;"),
    ("raise in a handler", Verdict.KEEP, "begin perform 1; exception when others then raise exception 'no'; end;"),
    ("assert", Verdict.KEEP, "assert random() < 2, 'no';"),
    ("write its own table", Verdict.KEEP, "delete from {home} where random() < 0;"),
    ("write another table", Verdict.DEFER, "update {other} set {column} = {column};"),
    ("write inside a WITH", Verdict.DEFER, "with gone as (delete from {other} returning 1) select from gone;"),
    ("notify", Verdict.DEFER, "perform pg_notify('added', 'x');"),
    ("notify in words", Verdict.DEFER, "notify added;"),
    ("execute what is not known", Verdict.REVIEW, "execute current_query();"),
    ("execute what a table says", Verdict.REVIEW, "execute (select {column}::text from {other} limit 1);"),
    ("call what is not there", Verdict.REVIEW, "perform nowhere.to_be_found(1);"),
    ("set a setting", Verdict.REVIEW, "perform set_config('app.added', 'x', true);"),
    ("lock", Verdict.REVIEW, "perform pg_advisory_xact_lock(1);"),
    ("lock a table", Verdict.REVIEW, "lock table {other};"),
    ("a command", Verdict.REVIEW, "create temporary table added_by_mutation (x int);"),
)
_ADDED_BEFORE = (
    ("cancel the row", Verdict.KEEP, "if random() < 0.5 then return null; end if;"),
    ("another row", Verdict.KEEP, "new := null;"),
    ("another row", Verdict.KEEP, "select * into new from {home} limit 1;"),
)


def _block(body: str) -> str:
    """A whole body as one statement of another."""
    return f"{body.rstrip().rstrip(';')}\n;"


def _after_begin(body: str, statement: str) -> str:
    """The statement as the first of the body."""
    listed = pieces(body)
    for place, piece in enumerate(listed):
        if piece.lower() == "begin":
            return "".join((*listed[: place + 1], f"\n{statement} ", *listed[place + 1 :]))
    return body
