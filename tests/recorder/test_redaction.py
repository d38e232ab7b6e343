"""Secrets do not leave the process: not to the store, and not to the spool's disk either."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest
from recorder_rig import recording, until

from afterwrite.recorder.redact import REDACTED, Redactor

RULES = Redactor()


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "Password",
        "user_password",
        "userPassword",
        "new-password",
        "API_KEY",
        "apiKey",
        "X-Api-Key",
        "client_secret",
        "access_token",
        "refreshToken",
        "token",
        "jwt",
        "Authorization",
        "cookie",
        "Set-Cookie",
        "cvv",
        "pin",
        "ssn",
        "card_number",
        "private_key",
        "aws_secret_access_key",
        "passphrase",
        "otp",
        "p.i.n",
    ],
)
def test_members_with_a_secrets_name_are_taken_out_whole(name: str) -> None:
    raw = msgspec.json.encode({"deep": [{name: {"a": "b"}}], "kept": 1})
    clean, found = RULES.redact(raw)
    assert msgspec.json.decode(clean) == {"deep": [{name: REDACTED}], "kept": 1}
    assert found == 1
    assert RULES.find_secret_name(raw) == name


@pytest.mark.parametrize(
    "metadata",
    [
        {
            "shopping": "x",
            "tokens_minted": 5,
            "token_id": 7,
            "author": "me",
            "pinned": "y",
            "passenger": "z",
            "spin": 1,
        },
        {"password": True, "token": None},
        {"text": 'a password": "b', "colon": '":"', "quote": 'x\\"'},
        {"url": "https://example.com/a?b=c&page=2", "zone": "Asia/Tokyo", "basic": "basic rules"},
        {
            "snowflake": 4111111111111111,
            "nanoseconds": "1763900000123456789",
            "uuid": "01a2073d-5dd9-7e52-a6f8-78271c032cb2",
        },
        {"wrong check digit": "4111 1111 1111 1112", "amount": "1,234,567,890,123.00", "iban": "DE00"},
    ],
)
def test_what_is_no_secret_stays_byte_for_byte(metadata: dict[str, object]) -> None:
    raw = msgspec.json.encode(metadata)
    assert RULES.redact(raw) == (raw, 0)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("paid by 4111 1111 1111 1111 today", f"paid by {REDACTED} today"),
        ("5555-5555-5555-4444", REDACTED),
        ("378282246310005", REDACTED),
        ("Authorization: Bearer abc.def-123456", f"Authorization: Bearer {REDACTED}"),
        ("basic dXNlcjpwYXNz", f"basic {REDACTED}"),
        ("t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1gn", f"t={REDACTED}"),
        ("postgresql://me:hunter2@db/shop", f"postgresql://me:{REDACTED}@db/shop"),
        ("redis://:hunt@er2@cache:6379/0", f"redis://:{REDACTED}@cache:6379/0"),
        ("id.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1gn.", f"id.{REDACTED}."),
        ("no route: host=db password=hunter2 user=me", f"no route: host=db password={REDACTED} user=me"),
        ("/reset?user=1&reset_token=abc#x", f"/reset?user=1&reset_token={REDACTED}#x"),
        ("key AKIAIOSFODNN7EXAMPLE.", f"key {REDACTED}."),
        ("ghp_" + "a1" * 18, REDACTED),
        ("sk_live_" + "a1" * 10, REDACTED),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", REDACTED),
    ],
)
def test_texts_lose_what_looks_like_a_secret(text: str, clean: str) -> None:
    assert RULES.redact_text(text) == (clean, 1)
    raw, found = RULES.redact(msgspec.json.encode({"a": [text]}))
    assert (msgspec.json.decode(raw), found) == ({"a": [clean]}, 1)


@pytest.mark.parametrize("piece", ["a.", "sk-", "a+", "eyJ", "-eyJ", ".eyJabcde", "://u:", "?token", "4 ", "bearer "])
def test_a_long_text_does_not_hold_the_process_up(piece: str) -> None:
    def seconds(length: int) -> float:
        raw = msgspec.json.encode({"said": piece * (length // len(piece)), "why": "basic words"})
        began = time.process_time()
        RULES.redact_text(raw.decode())
        RULES.redact(raw)
        return time.process_time() - began

    assert min(seconds(60_000) for _ in range(3)) < 0.5  # the square of it took ten seconds and more


def test_an_application_adds_and_allows_names_and_patterns() -> None:
    rules = Redactor(names=["plate number"], patterns=[r"EMP-(\d+)"], keep=["token"])
    raw, found = rules.redact(msgspec.json.encode({"plateNumber": "B 12", "token": "ACME", "who": "EMP-77 left"}))
    assert msgspec.json.decode(raw) == {"plateNumber": REDACTED, "token": "ACME", "who": f"{REDACTED} left"}
    assert found == 2


def test_neither_disk_nor_store_sees_a_secret(tmp_path: Path) -> None:
    secret, card = "correct-horse-battery", "4111111111111111"
    with recording(tmp_path) as (recorder, sink):
        sink.down = True
        for durability in ("spool", "memory"):
            recorded = recorder.record(
                "user.login",
                metadata={"password": secret, "n": [1]},
                summary=f"paid with {card}",
                durability=durability,
            )
        until(lambda: recorder.stats().queued == 0)
        files = b"".join(path.read_bytes() for path in (tmp_path / "spool").iterdir())
        assert b"user.login" in files
        assert secret.encode() not in files
        assert card.encode() not in files
        sink.down = False
        assert recorder.flush()
        assert sink.metadata(recorded.id) == {"password": REDACTED, "n": [1]}
        assert sink.activities[recorded.id].summary == f"paid with {REDACTED}"
        assert recorder.stats().redacted == 2
