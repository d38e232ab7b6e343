"""The decoder: what it reads, and what it says of bytes that it cannot read. No database."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwrite.capture.assemble import Assembler
from afterwrite.capture.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    LogicalMessage,
    Origin,
    Truncate,
    TypeName,
    decode,
    read_delete,
    read_insert,
    read_update,
)
from afterwrite.capture.transaction import Column, Relation, Transaction
from afterwrite.errors import AfterwriteError
from afterwrite.record import Lsn, from_pg_microseconds


def row(*values: bytes | None) -> bytes:
    parts = [struct.pack("!h", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack("!i", len(value)) + value)
    return b"".join(parts)


RELATION = (
    b"R" + struct.pack("!I", 7) + b"public\0t\0d" + struct.pack("!h", 2)
    + b"\x01id\0" + struct.pack("!Ii", 23, -1) + b"\x00note\0" + struct.pack("!Ii", 25, 68)
)  # fmt: skip
BEGIN = b"B" + struct.pack("!QqI", 0x1_0000_0010, 1_000_000, 77)
COMMIT = b"C" + struct.pack("!BQQq", 0, 0x1_0000_0010, 0x1_0000_0040, 1_000_000)
INSERT = b"I" + struct.pack("!I", 7) + b"N" + row(b"1", None)
UPDATE = b"U" + struct.pack("!I", 7) + b"O" + row(b"1", b"x") + b"N" + row(b"1", UNCHANGED)
DELETE = b"D" + struct.pack("!I", 7) + b"K" + row(b"1", None)
TRUNCATE = b"T" + struct.pack("!iB", 2, 3) + struct.pack("!II", 7, 8)
MESSAGE = b"M" + struct.pack("!BQ", 1, 0x20) + b"prefix\0" + struct.pack("!i", 3) + b"a\0b"
ORIGIN = b"O" + struct.pack("!Q", 9) + b"elsewhere\0"
TYPE = b"Y" + struct.pack("!I", 99) + b"public\0mood\0"
ALL = [RELATION, BEGIN, COMMIT, INSERT, UPDATE, DELETE, TRUNCATE, MESSAGE, ORIGIN, TYPE]
ROWS = [INSERT, UPDATE, DELETE]


def upper(text: bytes) -> bytes:
    return text.upper()


def assembled(*messages: bytes) -> Transaction | None:
    assembler = Assembler()
    found = [assembler.feed(message) for message in (BEGIN, RELATION, *messages, COMMIT)]
    return found[-1]


def test_each_message_is_read() -> None:
    assert decode(BEGIN) == Begin(Lsn(0x1_0000_0010), 1_000_000, 77)
    assert decode(COMMIT) == Commit(Lsn(0x1_0000_0010), Lsn(0x1_0000_0040), from_pg_microseconds(1_000_000))
    assert decode(RELATION) == Relation(
        7, "public", "t", "d", (Column("id", 23, -1, True), Column("note", 25, 68, False))
    )
    assert decode(TRUNCATE) == Truncate((7, 8), True, True)
    assert decode(MESSAGE) == LogicalMessage(True, Lsn(0x20), "prefix", b"a\0b")
    assert decode(ORIGIN) == Origin(Lsn(9), "elsewhere")
    assert decode(TYPE) == TypeName(99, "public", "mood")


def test_rows_are_read_as_texts_and_as_what_the_encoders_make_of_them() -> None:
    encoders = [upper, upper]
    assert read_insert(INSERT, encoders) == ([b"1", b"null"], [b"1", None])
    old, whole, new = read_update(UPDATE, encoders)
    assert (old, whole, new) == (([b"1", b"X"], [b"1", b"x"]), True, ([b"1", b"null"], [b"1", UNCHANGED]))
    assert new[1][1] is UNCHANGED
    assert read_delete(DELETE, encoders) == (([b"1", b"null"], [b"1", None]), False)


@pytest.mark.parametrize("message", ALL, ids=lambda message: chr(message[0]))
def test_a_message_cut_short_or_too_long_says_which_and_where(message: bytes) -> None:
    read = assembled if message in ROWS else decode
    for end in range(5 if message in ROWS else 1, len(message)):
        with pytest.raises(AfterwriteError, match=f"{chr(message[0])!r} of {end} bytes"):
            read(message[:end])
    with pytest.raises(AfterwriteError, match="should end at byte"):
        read(message + b"\0")


@pytest.mark.parametrize("microseconds", [2**63 - 1, -(2**63), 288_230_376_151_711_744])
def test_a_commit_time_that_no_clock_says_is_our_error(microseconds: int) -> None:
    with pytest.raises(AfterwriteError, match="cannot be read: a commit time of"):
        decode(COMMIT[:-8] + struct.pack("!q", microseconds))


@given(st.binary(max_size=60), st.sampled_from([b"", *(message[:1] for message in ALL), *(m[:12] for m in ALL)]))
def test_no_bytes_raise_anything_but_our_error(tail: bytes, head: bytes) -> None:
    for read in (decode, assembled):
        with contextlib.suppress(AfterwriteError):
            read(head + tail)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(AfterwriteError, match="unknown kind: b'Sxx'"):
        decode(b"Sxx")


def test_a_change_of_an_undescribed_relation_is_a_broken_stream() -> None:
    assembler = Assembler()
    assembler.feed(BEGIN)
    with pytest.raises(AfterwriteError, match="relation 7 before it has described it"):
        assembler.feed(INSERT)


def test_a_row_of_another_width_than_described_is_a_broken_stream() -> None:
    with pytest.raises(AfterwriteError, match=r"for public\.t cannot be read: a row of 3 columns, where 2 are"):
        assembled(b"I" + struct.pack("!I", 7) + b"N" + row(b"1", None, None))


def test_a_commit_without_a_begin_is_a_broken_stream() -> None:
    with pytest.raises(AfterwriteError, match="never began"):
        Assembler().feed(COMMIT)


def test_a_whole_transaction_with_the_size_of_its_messages() -> None:
    assembler = Assembler()
    messages = [BEGIN, RELATION, INSERT, UPDATE, DELETE, MESSAGE]
    for message in messages:
        assert assembler.feed(message) is None
        assert assembler.in_transaction
    transaction = assembler.feed(COMMIT)
    assert transaction is not None
    assert not assembler.in_transaction
    assert (transaction.xid, str(transaction.commit_lsn), str(transaction.end_lsn)) == (77, "1/10", "1/40")
    assert transaction.committed_at.isoformat() == "2000-01-01T00:00:01+00:00"
    assert [change.ordinal for change in transaction.changes] == [0, 1, 2]
    assert [message.ordinal for message in transaction.messages] == [3]
    assert transaction.size == sum(map(len, messages)) + len(COMMIT)
    # A key that the table's facts do not give is the replica identity's.
    assert [change.key for change in transaction.changes] == ["1", "1", "1"]
    assert transaction.changes[1].after == b'{"id":1,"note":"x"}'
