"""Secrets do not leave the process: not to the store, and not to the spool's disk either."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from recorder_rig import recording, until

from afterwrite.recorder.redact import REDACTED, Redactor, _Counted

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
        "X-Vault-Token",
        "HTTP_X_GITLAB_TOKEN",
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
        {"said": "basic understanding of bearer certificates, Bearer Information, basic subscriptions"},
        {"reply": '{"tokens": 5, "password": null, "passwordChanged": true, "note": "sk-learn, x-axis: 4"}'},
        {"cursor": "eyJpZCI6MTIzNDU2fQ==", "etag": '"33a64df551425fcc55e4d42a148795d9f25f89d4"'},
        {"published": "sb_publishable_abcdefghijklmnopqrstuvwx", "key": "pk_live_abcdefghijklmnopqrstuvwx"},
        {"wrong check digit": "4111 1111 1111 1112", "amount": "1,234,567,890,123.00", "iban": "DE00"},
    ],
)
def test_what_is_no_secret_stays_byte_for_byte(metadata: dict[str, object]) -> None:
    raw = msgspec.json.encode(metadata)
    assert RULES.redact(raw) == (raw, 0)


_SAMPLES = [
    ("paid by 4111 1111 1111 1111 today", f"paid by {REDACTED} today"),
    ("5555-5555-5555-4444", REDACTED),
    ("378282246310005", REDACTED),
    ("Authorization: Bearer abc.def-123456", f"Authorization: Bearer {REDACTED}"),
    ("basic dXNlcjpwYXNz", f"basic {REDACTED}"),
    ("'authorization': 'Bearer abcdefghijkl'", f"'authorization': '{REDACTED}'"),
    ("authorization=Bearer abcdefghijkl", f"authorization=Bearer {REDACTED}"),
    ("sent bearer abcdefghijklmnopqrstuvwx on", f"sent bearer {REDACTED} on"),
    ("t=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1gn", f"t={REDACTED}"),
    ("postgresql://me:hunter2@db/shop", f"postgresql://me:{REDACTED}@db/shop"),
    ("redis://:hunt@er2@cache:6379/0", f"redis://:{REDACTED}@cache:6379/0"),
    ("id.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s1gn.", f"id.{REDACTED}."),
    ("no route: host=db password=hunter2 user=me", f"no route: host=db password={REDACTED} user=me"),
    ("/reset?user=1&reset_token=abc#x", f"/reset?user=1&reset_token={REDACTED}#x"),
    ("key AKIAIOSFODNN7EXAMPLE.", f"key {REDACTED}."),
    ("ghp_" + "a1" * 18, REDACTED),
    ("sk_live_" + "a1" * 10, REDACTED),
    ("rk_test_" + "a1" * 10, REDACTED),
    ("sbp_" + "0a" * 20, REDACTED),
    ("SUPABASE sb_secret_" + "aZ0-" * 6, f"SUPABASE {REDACTED}"),
    ("github_pat_11ABCDEFG0" + "aB3_" * 8, REDACTED),
    ("xoxb-123456789012-abcdefABCDEF", REDACTED),
    ("xapp-1-A0123-4567-abcdef", REDACTED),
    ("AIza" + "Sy-_a" * 7, REDACTED),
    ("sk-proj-" + "aB3_-" * 5, REDACTED),
    ("sk-ant-api03-" + "aB3_-" * 5, REDACTED),
    ("sk-" + "aB3c" * 12, REDACTED),
    ("whsec_" + "aB3/" * 8, REDACTED),
    ("npm_" + "aB3c" * 9, REDACTED),
    ("SG." + "aB3c" * 5 + "." + "aB3c" * 10, REDACTED),
    ("hvs." + "aB3c" * 6, REDACTED),
    ("to https://hooks.slack.com/services/T0/B0/xyz", f"to https://hooks.slack.com/services/{REDACTED}"),
    ("AccountName=a;AccountKey=abc==", f"AccountName=a;AccountKey={REDACTED}"),
    ("Cookie: sid=1; theme=dark\nhost: x", f"Cookie: {REDACTED}\nhost: x"),
    ("x-api-key: 1234abcd", f"x-api-key: {REDACTED}"),
    ('got {"user": "ada", "password": "hun\\"ter2"}', f'got {{"user": "ada", "password": "{REDACTED}"}}'),
    ("failed: {'api_key': 'k', 'n': 1}", f"failed: {{'api_key': '{REDACTED}', 'n': 1}}"),
    ('{"pin": 1234, "n": 1}', f'{{"pin": "{REDACTED}", "n": 1}}'),
    ('{"secrets": {"a": ["b", {}]}, "n": 1}', f'{{"secrets": "{REDACTED}", "n": 1}}'),
    ('{"n": 1, "token": "cut off in the mid', f'{{"n": 1, "token": "{REDACTED}"'),
    ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", REDACTED),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", REDACTED),
]


@pytest.mark.parametrize(("text", "clean"), _SAMPLES)
def test_texts_lose_what_looks_like_a_secret(text: str, clean: str) -> None:
    assert RULES.redact_text(text) == (clean, 1)
    raw, found = RULES.redact(msgspec.json.encode({"a": [text]}))
    assert (msgspec.json.decode(raw), found) == ({"a": [clean]}, 1)


@pytest.mark.parametrize(
    "piece",
    [
        "a.",
        "sk-",
        "a+",
        "eyJ",
        "-eyJ",
        ".eyJabcde",
        "://u:",
        "?token",
        "4 ",
        "bearer ",
        "\\",
        '\\"',
        "x-",
        '"a":',
        '"token":{',
        "'token':'",
        "{'token':[",
        "xapp-1-",
    ],
)
def test_a_long_text_does_not_hold_the_process_up(piece: str) -> None:
    def seconds(length: int) -> float:
        raw = msgspec.json.encode({"said": piece * (length // len(piece)), "why": "basic words"})
        began = time.process_time()
        RULES.redact_text(raw.decode())
        RULES.redact(raw)
        return time.process_time() - began

    assert min(seconds(60_000) for _ in range(3)) < 0.5  # the square of it took ten seconds and more


@given(
    st.recursive(
        st.fixed_dictionaries({"user": st.just("ada"), "password": st.just("hunter2")}),
        lambda inner: st.one_of(
            inner.map(lambda value: {"body": msgspec.json.encode(value).decode(), "n": 1}),
            inner.map(lambda value: [value, "text"]),
            inner.map(lambda value: {"said": f"it was {value!r}"}),
            inner.map(lambda value: {"said": f"it was {json.dumps(value, indent=1)}, it was"}),
        ),
        max_leaves=6,
    )
)
def test_a_secret_in_json_in_a_text_is_found_however_deep_it_was_put(value: object) -> None:
    clean, found = RULES.redact(msgspec.json.encode({"value": value}))
    assert b"hunter2" not in clean
    assert found
    assert clean.count(b"ada") == msgspec.json.encode(value).count(b"ada")
    assert RULES.redact(clean) == (clean, 0)


_IDS = st.one_of(
    st.uuids().map(str),
    st.uuids().map(lambda id: id.hex),
    st.binary(min_size=20, max_size=64).map(bytes.hex),
    st.binary(min_size=6, max_size=90).map(lambda content: base64.b64encode(content).decode()),
    st.binary(min_size=6, max_size=90).map(lambda content: base64.urlsafe_b64encode(content).decode()),
    st.binary(min_size=16, max_size=16).map(lambda content: base64.b32encode(content).decode().rstrip("=")),
    st.integers(0, 1 << 63).map(lambda number: f"1{number % 10**18:018}"),
    st.datetimes().map(str),
    st.ip_addresses().map(str),
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ .,:;!?'-", max_size=200),
)


@given(st.lists(st.tuples(st.sampled_from(["", "id ", "commit ", "order #", '"', "(", "/a/"]), _IDS), max_size=5))
def test_ids_hashes_and_prose_are_left_as_they_are(parts: list[tuple[str, str]]) -> None:
    text = " ".join(before + id for before, id in parts)
    assert RULES.redact_text(text) == (text, 0)


@given(
    st.recursive(
        st.one_of(_IDS, st.integers(), st.sampled_from([text for text, _ in _SAMPLES])),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["n", "ref", "x-note", "passport", "userPassword", "pin", "key", ""]), inner
            ),
            inner.map(lambda value: {"body": json.dumps(value)}),
        ),
        max_leaves=8,
    )
)
def test_the_quick_look_never_denies_what_the_closer_one_finds(value: object) -> None:
    raw = msgspec.json.encode({"value": value})
    counted = _Counted(RULES)
    counted.clean(msgspec.json.decode(raw))
    assert RULES.redact(raw)[1] == counted.found


_PIECES = (
    *["Bearer", "Basic", "cookie", "x-vault-", "token", "secret", "password", "pin", "api", "key", "sig", "пароль"],
    *[":", "=", "?", "&", "://", "@", "/", "\\", '"', "'", " ", "\n", "\t", "\xa0", "-", "_", ",", "%", "é", "’", "{"],
    *["user", "Ab1Ab1Ab1", "dXNlcjpwYXNz", "41111111", "eyJhbGciOi", "sk-proj-", "SG.", "hooks.slack.com/services/"],
)
_WORDS = st.lists(st.sampled_from(_PIECES), max_size=8).map("".join)


@pytest.mark.parametrize("rules", [RULES, Redactor(names=["ПАРОЛЬ"], keep=["cookie"])])
@given(
    value=st.one_of(
        _WORDS,
        st.dictionaries(_WORDS, _WORDS, max_size=3),
        st.dictionaries(_WORDS, _WORDS, max_size=3).map(str),
        st.dictionaries(_WORDS, _WORDS, max_size=3).map(json.dumps),
    )
)
@example(value="X-Vault-Token: s.CAESIJ")
@example(value="Authorization: Bearer\tabcdefgh12345")
@example(value="Bearer\xa0abcdefgh12345")
@example(value={"note": "it's", "api:key": "x"})
@example(value={":name": "bob", ":password": "x"})
@example(value={"pin\r": "1234"})
@example(value='postgres://us"er:pw@host/db')
def test_the_quick_look_denies_nothing_of_whatever_pieces_a_text_is_made(rules: Redactor, value: object) -> None:
    raw = msgspec.json.encode({"value": value})
    counted = _Counted(rules)
    counted.clean(msgspec.json.decode(raw))
    assert rules.redact(raw)[1] == counted.found


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
