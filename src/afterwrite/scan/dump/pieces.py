"""Cutting a dump into statements, as psql would: without understanding them, and without ever holding their data.

    file ─▶ lines ─▶ Piece, Piece, …      (COPY data, psql's backslash lines: counted and passed over)

Line by line, so that a dump with all its rows can be read as well. What is cut here is not trusted: every statement is
parsed afterwards, by itself, and the server takes one statement at a time.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from afterwrite.errors import AfterwriteError, UsageError

LONGEST_STATEMENT = 16 * 1024 * 1024
_CHUNK = 64 * 1024 * 1024
_PART = 1024 * 1024

_ARCHIVES = (
    (b"PGDMP", "a dump in PostgreSQL's custom format", "pg_restore --schema-only -f structure.sql {path}"),
    (b"\x1f\x8b", "compressed (gzip)", "gunzip -c {path} > structure.sql"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "zstd -dc {path} > structure.sql"),
    (b"\x04\x22\x4d\x18", "compressed (lz4)", "lz4 -dc {path} > structure.sql"),
    (b"\xfd7zXZ", "compressed (xz)", "xz -dc {path} > structure.sql"),
    (b"BZh", "compressed (bzip2)", "bzip2 -dc {path} > structure.sql"),
    (b"PK\x03\x04", "a zip file", "unzip {path}"),
    (b"SQLite format 3", "an SQLite database", "pg_dump --schema-only -f structure.sql, of a PostgreSQL database"),
)
_MARKS = (
    *((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A statement's text and the line where it begins; or, with ``passed``, something that is not run and its kind."""

    line: int
    text: str = ""
    passed: str = ""


# Opening -------------------------------------------------------------------------------------------------------------


@contextmanager
def open_dump(path: str) -> Generator[Iterable[bytes]]:
    """The lines of a dump (``-``: of the standard input), as UTF-8 where it said that it is UTF-16.

    Raises UsageError, with the command that mends it, for a directory, an archive or what is no text at all.
    """
    if path == "-":
        yield _lines_of(sys.stdin.buffer, path)
        return
    place = Path(path)
    if place.is_dir():
        archive = (place / "toc.dat").exists()
        raise UsageError(
            f"{path} is {'a dump in the directory format' if archive else 'a directory'}, and scan reads SQL text",
            remedy=f"pg_restore --schema-only -f structure.sql {path}" if archive else "name the file",
        )
    try:
        file = place.open("rb")
    except FileNotFoundError:
        raise UsageError(
            f"there is no file {path}", remedy="name a dump made with pg_dump --schema-only, or use --dsn"
        ) from None
    except OSError as error:
        raise AfterwriteError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield _lines_of(file, path)


def _lines_of(file: BinaryIO, path: str) -> Iterable[bytes]:
    buffered = cast("io.BufferedReader", file)  # what open() gives for reading bytes, and what stdin has
    start = buffered.peek(512)[:512]
    for magic, what, remedy in _ARCHIVES:
        if start.startswith(magic):
            raise UsageError(f"{path} is {what}, and scan reads SQL text", remedy=remedy.format(path=path))
    if start[257:262] == b"ustar":
        raise UsageError(
            f"{path} is a dump in the tar format, and scan reads SQL text",
            remedy=f"pg_restore --schema-only -f structure.sql {path}",
        )
    for mark, encoding in _MARKS:
        if start.startswith(mark):  # PowerShell's > writes these
            return _recoded(buffered, encoding)
    if b"\0" in start:
        raise UsageError(f"{path} is not a text file", remedy="name a dump made with pg_dump --schema-only")
    if start.startswith(codecs.BOM_UTF8):
        buffered.read(len(codecs.BOM_UTF8))
    return _lines(buffered)


def _lines(file: io.BufferedReader) -> Iterator[bytes]:
    """Lines; one of many megabytes comes in parts."""
    while line := file.readline(_CHUNK):
        yield line


def _recoded(file: io.BufferedReader, encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    rest = ""
    while chunk := file.read(_PART):
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            yield f"{line}\n".encode()
    if rest:
        yield rest.encode()


# Cutting -------------------------------------------------------------------------------------------------------------

_WAKING = re.compile(r"""['"();\\]|--|/\*|\$(?:[^\W\d]\w*)?\$""")
_WAKING_IN_ROUTINE = re.compile(rf"{_WAKING.pattern}|\b(?:begin|atomic|case|end)\b", re.IGNORECASE)
_ROUTINE = re.compile(r"\s*create\s+(?:or\s+replace\s+)?(?:function|procedure)\b", re.IGNORECASE)
COPY_IN = re.compile(r"\s*copy\b.*\bfrom\s+(?:stdin|pstdin)\b", re.IGNORECASE | re.DOTALL)
_ENCODING = re.compile(r"\s*set\s+(?:session\s+)?client_encoding\s*(?:=|\bto\b)\s*'?([\w-]+)'?\s*$", re.IGNORECASE)
_CONFORMING = re.compile(r"\s*set\s+(?:session\s+)?standard_conforming_strings\s*(?:=|\bto\b)\s*'?(\w+)'?\s*$", re.I)
_ESCAPES = re.compile(r"\\.|''|'", re.DOTALL)
_PLAIN = re.compile(r"''|'")
_NAMES = re.compile(r'""|"')
_COMMENTS = re.compile(r"/\*|\*/")
_META = re.compile(r"\\(\S*)")
# What PostgreSQL calls an encoding, where Python calls it otherwise.
_CODECS = {
    "SQL_ASCII": "utf-8",
    "UNICODE": "utf-8",
    "SJIS": "cp932",
    "SHIFT_JIS_2004": "shift_jis_2004",
    "UHC": "cp949",
    "BIG5": "cp950",
    "KOI8R": "koi8-r",
    "KOI8U": "koi8-u",
    "ISO_8859_5": "iso8859-5",
}


def cut(lines: Iterable[bytes]) -> Iterator[Piece]:
    """The statements of a dump in their order, and what was passed over."""
    yield from _Cutter().cut(lines)


class _Cutter:
    """Where in a statement we are. ``quote`` is what would end the literal, name or comment that is open."""

    def __init__(self) -> None:
        self.encoding = "utf-8"
        self.conforming = True
        self.number = 0
        self.copying = 0
        self._begin()

    def _begin(self) -> None:
        self.parts: list[str] = []
        self.size = 0
        self.first = 0
        self.depth = 0
        self.quote: re.Pattern[str] | str | None = None
        self.comments = 0
        self.routine = False
        self.known = False
        self.atomic = 0

    def cut(self, lines: Iterable[bytes]) -> Iterator[Piece]:
        whole = True
        for raw in lines:
            self.number += whole
            whole = raw.endswith(b"\n")
            if self.copying:
                if raw in (b"\\.\n", b"\\.\r\n", b"\\."):
                    self.copying = 0
                continue
            line = raw.decode(self.encoding, errors="replace")
            yield from self._line(line[:-2] + "\n" if line.endswith("\r\n") else line)
        if self.copying:
            yield Piece(line=self.copying, passed="COPY data without an end")
        elif self.quote is not None or self.depth or self.atomic:
            yield Piece(line=self.first or self.number, passed="statement without an end")
        else:
            yield from self._finish()

    def _line(self, line: str) -> Iterator[Piece]:
        place = 0
        start = 0
        while True:
            if self.quote is not None:
                comment = self.quote is _COMMENTS
                place = self._close(line, place)
                if place < 0:
                    break
                start = place if comment else start
                continue
            found = (_WAKING_IN_ROUTINE if self.routine else _WAKING).search(line, place)
            if found is None:
                break
            place, text = found.end(), found[0]
            match text:
                case "'":
                    start = self._literal(line, found.start(), start)
                case '"':
                    self.quote = _NAMES
                case "(":
                    self._note_routine(line[start : found.start()])
                    self.depth += 1
                case ")":
                    self.depth = max(0, self.depth - 1)
                case ";":
                    if not self.depth and not self.atomic:
                        self._add(line[start : found.start()])
                        start = place
                        yield from self._finish()
                        if self.copying:
                            return
                case "\\":
                    self._add(line[start : found.start()])
                    yield self._meta(line, found.start())
                    return
                case "--":
                    self._add(line[start : found.start()] + "\n")
                    return
                case "/*":
                    self._add(line[start : found.start()] + " ")
                    self.quote, self.comments = _COMMENTS, 1
                case _ if text[0] == "$":
                    if not _follows_name(line, found.start()):
                        self.quote = text
                case _:
                    self._word(text.lower())
        if self.quote is _COMMENTS:
            return
        self._add(line[start:])

    def _close(self, line: str, place: int) -> int:
        """Where the open literal, name or comment ends in this line; -1 when it goes on."""
        quote = self.quote
        if isinstance(quote, str):
            end = line.find(quote, place)
            if end < 0:
                return -1
            self.quote = None
            return end + len(quote)
        if quote is None:
            return place
        for found in quote.finditer(line, place):
            if quote is _COMMENTS:
                self.comments += 1 if found[0] == "/*" else -1
                if self.comments:
                    continue
            elif len(found[0]) == 2:
                continue
            self.quote = None
            return found.end()
        return -1

    def _literal(self, line: str, place: int, start: int) -> int:
        """A literal opens. Where backslashes escape by setting and not by an E, an E is put before it."""
        before = line[place - 1 : place]
        prefixed = before in ("e", "E", "b", "B", "x", "X", "n", "N") and not _follows_name(line, place - 1)
        prefixed = prefixed or line[max(0, place - 2) : place] in ("u&", "U&")
        self.quote = _ESCAPES if before in ("e", "E") and prefixed else _PLAIN
        if not self.conforming and not prefixed:
            self._add(line[start:place] + " E")
            self.quote = _ESCAPES
            return place
        return start

    def _word(self, word: str) -> None:
        """Inside a routine: whether a SQL-standard body is open, which may hold semicolons."""
        if word == "atomic" and not self.depth:
            self.atomic = self.atomic or 1
        elif self.atomic:
            self.atomic += {"begin": 1, "case": 1, "end": -1}.get(word, 0)

    def _note_routine(self, rest: str) -> None:
        if not self.known:
            self.known = True
            self.routine = _ROUTINE.match("".join(self.parts) + rest) is not None

    def _add(self, text: str) -> None:
        if not self.first:
            if not text.strip():
                return
            self.first = self.number
        self.size += len(text)
        if self.size <= LONGEST_STATEMENT:
            self.parts.append(text)

    def _meta(self, line: str, place: int) -> Piece:
        """A backslash outside of quotes is psql's: whatever it was to do is not done, nor what stood before it."""
        word = _META.match(line, place)
        first = self.first or self.number
        self._begin()
        text = line[word.end() :].strip() if word else ""
        return Piece(line=first, text=text, passed=f"psql \\{word[1].rstrip(';') if word else ''}")

    def _finish(self) -> Iterator[Piece]:
        text = "".join(self.parts).strip()
        first, size = self.first, self.size
        self._begin()
        if not first:
            return
        if size > LONGEST_STATEMENT:
            yield Piece(line=first, passed="statement of more than 16 MiB")
            return
        if "\0" in text:
            yield Piece(line=first, passed="statement with a NUL byte")
            return
        if COPY_IN.match(text):
            self.copying = first
        elif encoding := _ENCODING.match(text):
            self._take_encoding(encoding[1])
        elif conforming := _CONFORMING.match(text):
            self.conforming = conforming[1].lower() not in ("off", "false", "no", "0")
        yield Piece(line=first, text=text)

    def _take_encoding(self, name: str) -> None:
        wanted = _CODECS.get(name.upper(), re.sub(r"^WIN(\d+)$", r"cp\1", name.upper()))
        try:
            self.encoding = codecs.lookup(wanted).name
        except LookupError:
            self.encoding = "utf-8"


def _follows_name(line: str, place: int) -> bool:
    """Whether what stands at this place goes on with a name (`a$b$`), so that it opens nothing."""
    before = line[place - 1 : place]
    return bool(before) and (before.isalnum() or before in "_$")
