"""Cutting a dump as psql would, and telling what is no SQL text."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from afterwrite.errors import UsageError
from afterwrite.scan.dump.pieces import LONGEST_STATEMENT, Piece, cut, open_dump


def pieces(text: str | bytes) -> list[Piece]:
    raw = text if isinstance(text, bytes) else text.encode()
    return list(cut(raw.splitlines(keepends=True)))


def texts(text: str | bytes) -> list[str]:
    return [piece.text for piece in pieces(text) if not piece.passed]


@pytest.mark.parametrize(
    ("dump", "expected"),
    [
        ("select 1; select 2", ["select 1", "select 2"]),
        ("create table t (a text default ';', b text default 'it''s;');", 1),
        ('create table "a;b" ("c"";d" int);', 1),
        ("create function f() returns int as $$ begin; end; $$ language plpgsql; select 1", 2),
        ("create function f() returns int as $a$ $$ ; $b$ ; $a$ language sql; select 1", 2),
        ("select a$b$c; select d$b$e", ["select a$b$c", "select d$b$e"]),
        ("select $1;$2", ["select $1", "$2"]),
        (r"select E'a\';b'; select 2", [r"select E'a\';b'", "select 2"]),
        (r"select 'a\'; select 2", [r"select 'a\'", "select 2"]),
        ("/* a ; /* b ; */ c ; */ select 1; -- select 2;\nselect 3;", ["select 1", "select 3"]),
        ("select 1 -- '\n; select 2", ["select 1", "select 2"]),
        ("create rule r as on insert to t do (select 1; select 2); select 3", 2),
        (
            "create function f() returns int begin atomic select case when a then 1 end; select 2; end; select 3",
            2,
        ),
        ("create procedure p(a int) begin\natomic insert into t values (a); end; select 3", 2),
        ("begin; select 1; end; select 2", 4),
        ("select 'über;ß'; select 2", ["select 'über;ß'", "select 2"]),
        ("\r\nselect 1;\r\nselect\r\n2;\r\n", ["select 1", "select\n2"]),
        ("   ;;; ; select 1;;", ["select 1"]),
        ("select '\n\\! touch x\n;'; select 2", ["select '\n\\! touch x\n;'", "select 2"]),
    ],
)
def test_a_semicolon_ends_a_statement_where_psql_says_so(dump: str, expected: list[str] | int) -> None:
    found = texts(dump)
    assert len(found) == expected if isinstance(expected, int) else found == expected


def test_lines_are_those_where_statements_begin() -> None:
    found = pieces("-- head\n\ncreate table a (\n  b int\n);\n/* c\n */ select\n1;\n")
    assert [piece.line for piece in found] == [3, 7]


def test_psqls_own_lines_are_passed_over_with_what_stood_before_them() -> None:
    found = pieces("\\restrict abc\nselect 1 \\gexec\nselect 2;\n\\connect other\n\\.\n")
    assert [(piece.line, piece.passed, piece.text) for piece in found] == [
        (1, "psql \\restrict", "abc"),
        (2, "psql \\gexec", ""),
        (3, "", "select 2"),
        (4, "psql \\connect", "other"),
        (5, "psql \\.", ""),
    ]


def test_the_rows_of_copy_are_never_read_as_statements() -> None:
    found = pieces("COPY public.t (a, b) FROM stdin;\n1\t;drop table t;\n\\N\t'\n$$\n\\.\nselect 2;\n")
    assert [piece.text for piece in found] == ["COPY public.t (a, b) FROM stdin", "select 2"]
    [_, end] = pieces("copy t from stdin;\n1\n2\n")
    assert end.passed == "COPY data without an end"


def test_what_has_no_end_is_told_and_not_given() -> None:
    for open_ended in ("select 'abc", "select $$ abc ;", "create table t (a int;", "select 1 /* ;", 'select "a;'):
        [piece] = pieces(open_ended)
        assert (piece.passed, piece.text) == ("statement without an end", "")


def test_nul_bytes_and_endless_statements_are_left_out() -> None:
    assert [piece.passed for piece in pieces(b"select '\0'; select 2;")] == ["statement with a NUL byte", ""]
    huge = b"select '" + b"x" * LONGEST_STATEMENT + b"'; select 2;"
    assert [piece.passed for piece in pieces(huge)] == ["statement of more than 16 MiB", ""]


def test_a_dump_says_in_which_encoding_it_is_written() -> None:
    latin = "set client_encoding = 'LATIN1';\ncomment on trigger a on b is 'für';\n".encode("latin-1")
    assert "für" in texts(latin)[1]
    shift_jis = "set client_encoding to SJIS;\nselect '表;';\nselect 2;".encode("cp932")  # ends in a backslash's byte
    assert texts(shift_jis)[1:] == ["select '表;'", "select 2"]
    assert texts(b"select '\xff\xfe'; select 2")[1] == "select 2"


def test_without_standard_strings_a_backslash_escapes_and_the_text_says_so() -> None:
    found = texts("set standard_conforming_strings = off;\nselect 'a\\';b', N'c', E'd\\''; select 2;")
    assert found[1:] == ["select  E'a\\';b', N'c', E'd\\''", "select 2"]


@pytest.mark.parametrize(
    ("start", "remedy"),
    [
        (b"PGDMP\x01\x0e\x00", "pg_restore --schema-only -f structure.sql"),
        (gzip.compress(b"select 1;", mtime=0), "gunzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x7fELF\x00\x00", "pg_dump --schema-only"),
    ],
)
def test_an_archive_is_told_with_the_command_that_mends_it(tmp_path: Path, start: bytes, remedy: str) -> None:
    file = tmp_path / "structure"
    file.write_bytes(start)
    with pytest.raises(UsageError) as caught, open_dump(str(file)):
        pass
    assert remedy in (caught.value.remedy or "")


def test_a_directory_and_a_missing_file_are_told(tmp_path: Path) -> None:
    (tmp_path / "toc.dat").write_bytes(b"PGDMP")
    with pytest.raises(UsageError, match="directory format") as caught, open_dump(str(tmp_path)):
        pass
    assert "pg_restore" in (caught.value.remedy or "")
    with pytest.raises(UsageError, match="no file"), open_dump(str(tmp_path / "absent.sql")):
        pass


def test_what_powershell_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "structure.sql"
    file.write_bytes("\ufeffcreate table t (a int);\r\nselect 'ü';\r\n".encode("utf-16-le"))
    with open_dump(str(file)) as lines:
        assert [piece.text for piece in cut(lines)] == ["create table t (a int)", "select 'ü'"]


def test_a_large_dump_is_cut_as_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "data.sql"
    with file.open("wb") as writing:
        writing.write(b"copy t from stdin;\n")
        for _ in range(200):
            writing.write(b"1\tabc;'\n" * 10_000)
        writing.write(b"\\.\nselect 1;\n")
    with open_dump(str(file)) as lines:
        found = list(cut(lines))
    assert [(piece.line, piece.text) for piece in found] == [(1, "copy t from stdin"), (2_000_003, "select 1")]
