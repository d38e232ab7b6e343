"""What headers may say: addresses by trusted proxies, ids, agents, and what attackers write into them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterwrite.errors import UsageError
from afterwrite.integrations.http_request import (
    LONGEST_AGENT,
    MOST_HOPS,
    Asking,
    Proxies,
    Told,
    decode,
    name_user,
    read_request,
    read_trace,
)

OURS = Proxies(["10.0.0.0/8", "2001:db8::/32", "127.0.0.1"])
FORWARDED = Proxies(["10.0.0.0/8", "unix"], "forwarded")
TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("peer", "values", "expected"),
    [
        # Nobody is trusted who is not named: what he writes is not looked at.
        ("203.0.113.9", ["1.2.3.4"], "203.0.113.9"),
        ("203.0.113.9", ["127.0.0.1"], "203.0.113.9"),
        ("203.0.113.9", [], "203.0.113.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4"], "1.2.3.4"),
        # From right to left: what the caller wrote himself stands left of what the proxy saw.
        ("10.0.0.1", ["127.0.0.1, 6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6, 1.2.3.4, 10.9.9.9"], "1.2.3.4"),
        ("10.0.0.1", ["6.6.6.6", "1.2.3.4", " 10.9.9.9 ,, "], "1.2.3.4"),
        ("10.0.0.1", ["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        # Where somebody is not known, whoever was called from there is the last one who is.
        ("10.0.0.1", ["1.2.3.4, unknown, 10.2.2.2"], "10.2.2.2"),
        ("10.0.0.1", ["'; drop table activity; --"], "10.0.0.1"),
        ("10.0.0.1", ["1.2.3.4\x00"], "10.0.0.1"),
        # Ports, brackets, zones, and IPv4 in the clothes of IPv6.
        ("10.0.0.1", ["1.2.3.4:5678"], "1.2.3.4"),
        ("10.0.0.1", ["[2606:4700::1]:443"], "2606:4700::1"),
        ("10.0.0.1", ["2606:4700:0::0001"], "2606:4700::1"),
        ("::ffff:10.0.0.1", ["::ffff:1.2.3.4"], "1.2.3.4"),
        ("2001:db8::5", ["fe80::1%eth0"], "fe80::1"),
        # Not an address at all, and a Unix socket that nobody trusts.
        ("testclient", ["1.2.3.4"], None),
        (None, ["1.2.3.4"], None),
        ("", ["1.2.3.4"], None),
    ],
)
def test_an_address_is_believed_as_far_as_trusted_proxies_wrote_it(
    peer: str | None, values: list[str], expected: str | None
) -> None:
    assert OURS.client(peer, values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["for=1.2.3.4"], "1.2.3.4"),
        (["for=6.6.6.6, for=1.2.3.4;proto=https;by=10.0.0.1, For=10.7.7.7"], "1.2.3.4"),
        (['proto=http; for="[2606:4700::1]:4711"'], "2606:4700::1"),
        (['for="1.2.3.4:80" ; host=example.org'], "1.2.3.4"),
        (["for=1.2.3.4", "for=_hidden"], "10.0.0.1"),
        (["for=unknown"], "10.0.0.1"),
        (["by=1.2.3.4"], "10.0.0.1"),
        (["for=1.2.3.4;for=6.6.6.6"], "10.0.0.1"),
        # A quote that its sender left open does not swallow what a proxy wrote after it.
        (['for="6.6.6.6', "for=1.2.3.4"], "1.2.3.4"),
        (['for="6.6.6.6, for=1.2.3.4'], "1.2.3.4"),
        (["xfor=6.6.6.6"], "10.0.0.1"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(values: list[str], expected: str) -> None:
    assert FORWARDED.client("10.0.0.1", values) == expected
    assert FORWARDED.client(None, values) == (expected if expected != "10.0.0.1" else None)
    assert FORWARDED.client("203.0.113.9", values) == "203.0.113.9"


def test_thousands_of_hops_and_long_headers_are_read_quickly_and_only_at_their_end() -> None:
    assert OURS.client("10.0.0.1", ["6.6.6.6," * 100_000 + "1.2.3.4"]) == "1.2.3.4"
    assert OURS.client("10.0.0.1", ["9.9.9.9, " + "10.0.0.2," * 50_000]) == "10.0.0.2"
    assert OURS.client("10.0.0.1", ["6.6.6.6"] + ["10.0.0.2"] * MOST_HOPS) == "10.0.0.2"
    began = time.perf_counter()
    for value in ("x" * 1_000_000, "for=" * 250_000, 'for="' + "a" * 1_000_000, " \t" * 500_000, ";for =" * 100_000):
        assert FORWARDED.client("10.0.0.1", [value]) == "10.0.0.1"
        assert OURS.client("10.0.0.1", [value]) == "10.0.0.1"
        assert read_trace([value]) is None
        read_request(lambda _, value=value: [value], "10.0.0.1", OURS)
    assert time.perf_counter() - began < 2


@given(st.one_of(st.none(), st.text()), st.lists(st.text(alphabet='0123456789.:,;=" \\[]%forabc\0\n')))
def test_no_header_raises(peer: str | None, values: list[str]) -> None:
    for proxies in (OURS, FORWARDED):
        proxies.client(peer, values)
        told = read_request(lambda _: values, peer, proxies)
        assert told.request
        assert told.user_agent is None or not any(character < " " for character in told.user_agent)


@pytest.mark.parametrize("word", ["10.0.0.0/33", "proxy.example", "*", ""])
def test_no_network_is_refused_where_it_is_written(word: str) -> None:
    with pytest.raises(UsageError, match="no network"):
        Proxies([word])


def test_no_header_of_proxies_is_refused() -> None:
    with pytest.raises(UsageError, match="no header of proxies"):
        Proxies([], "x-real-ip")  # type: ignore[arg-type]
    assert Proxies("10.0.0.0/8").client("10.0.0.1", ["1.2.3.4"]) == "1.2.3.4"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"00-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01-what-comes-later", TRACE),
        (f"cc-{TRACE}-b7ad6b7169203331-01", TRACE),
        (f"00-{TRACE}-b7ad6b7169203331-01-more", None),
        (f"ff-{TRACE}-b7ad6b7169203331-01", None),
        (f"00-{'0' * 32}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-b7ad6b7169203331", None),
        (f"00-{TRACE[:-1]}-b7ad6b7169203331-01", None),
        (f"00-{TRACE}-b7ad6b7169203331-01\n", TRACE),
        ("", None),
    ],
)
def test_a_traceparent_is_kept_when_it_is_one(value: str, expected: str | None) -> None:
    assert read_trace([value]) == expected
    assert read_trace([value, value]) is None


def test_a_request_id_is_kept_when_it_looks_like_one() -> None:
    def read(*values: str) -> Told:
        return read_request(lambda name: values if name == "x-request-id" else (), None, OURS)

    assert read("Root=1-67891233-abc:def/2").request == "Root=1-67891233-abc:def/2"
    for odd in ("", "a b", "a\r\nset-cookie: x", "<script>", "x" * 129, "é", "a\0"):
        made = read(odd).request
        assert made != odd
        assert made.isalnum()
    assert read("one", "two").request not in {"one", "two", "one,two"}
    assert read().request != read().request


def test_a_user_agent_is_one_line_of_a_bounded_length() -> None:
    def read(value: str) -> str | None:
        return read_request(lambda name: [value] if name == "user-agent" else [], None, OURS).user_agent

    assert read("curl/8") == "curl/8"
    assert read("evil\0\r\nX-Admin: yes\x85") == "evil X-Admin: yes"
    assert len(read("x" * 10_000) or "") == LONGEST_AGENT
    assert read(" \0 ") is None
    assert (decode("Zoë".encode()), decode("Zoë".encode("latin-1"))) == ("Zoë", "Zoë")


def test_who_the_user_is() -> None:
    class Anonymous:
        is_authenticated = False
        id = 7

    class Simple:
        is_authenticated = True

        @property
        def identity(self) -> str:
            raise NotImplementedError

    class Kept:
        pk = 42

    assert name_user(None) is name_user(Anonymous()) is name_user(Simple()) is name_user({}) is None
    assert (name_user(Kept()), name_user({"sub": "abc"}), name_user("alice")) == ("user:42", "user:abc", "user:alice")
    assert name_user("service:mailer") == "service:mailer"
    assert name_user("") is name_user({"sub": ""}) is None


def test_each_question_is_asked_until_it_is_answered_and_one_that_fails_keeps_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[str] = []

    def actor(request: dict[str, str]) -> object:
        asked.append("actor")
        return request.get("user")

    def tenant(request: dict[str, str]) -> object:
        raise LookupError("no tenant")

    request: dict[str, str] = {}
    asking = Asking(request, {"actor": actor, "tenant": tenant, "session": lambda _: 7, "nothing": None})
    first = asking()
    request["user"] = "user:1"
    second = asking()
    assert (first, second) != (None, None)
    assert asking() is second
    assert asked == ["actor", "actor"]
    assert len(caplog.records) <= 1, "told once"
