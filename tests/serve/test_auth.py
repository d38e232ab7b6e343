"""Who is let in: keys, tokens, sessions, a proxy's word, this machine; and who is not."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from serving import Client, an_event, key, serving, store, write

from afterwrite.errors import AfterwriteError, Refused, UsageError
from afterwrite.postgres import connect
from afterwrite.serve import auth, tokens
from afterwrite.serve.auth import SESSION_COOKIE, Auth, check_start, is_loopback
from afterwrite.serve.keys import list_keys, make_key, revoke_key, split_key
from afterwrite.serve.tenancy import Readers
from afterwrite.serve.tokens import read_issuer
from afterwrite.serve.visits import meet
from afterwrite.settings import Settings

NOW = datetime.now(UTC)
SECRET = "a secret of more than thirty-two bytes"


@pytest.fixture(scope="module")
def dsn(server: Any) -> Iterator[str]:
    with store(server) as dsn:
        write(dsn, an_event(1, NOW, tenant_id="acme"), an_event(2, NOW, tenant_id="other"), an_event(3, NOW))
        yield dsn


@pytest.fixture(scope="module")
def client(dsn: str) -> Iterator[Client]:
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        yield client


class Issuer(ThreadingHTTPServer):
    """Publishes keys, and signs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Keys)
        self.asked = 0
        self.keys: dict[str, Any] = {"one": ec.generate_private_key(ec.SECP256R1())}
        self.more: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/auth/v1/.well-known/jwks.json"

    @property
    def name(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/auth/v1"

    def sign(self, kid: str = "one", algorithm: str = "ES256", **claims: Any) -> str:
        said = {"sub": "7f0c", "aud": "authenticated", "iss": self.name, "exp": int(time.time()) + 60, **claims}
        return jwt.encode(
            {name: value for name, value in said.items() if value is not None},
            self.keys[kid], algorithm=algorithm, headers={"kid": kid},
        )  # fmt: skip


class _Keys(BaseHTTPRequestHandler):
    server: Issuer

    def do_GET(self) -> None:
        self.server.asked += 1
        found = []
        for kid, private in self.server.keys.items():
            maker = ECAlgorithm if isinstance(private, ec.EllipticCurvePrivateKey) else RSAAlgorithm
            found.append({**json.loads(maker.to_jwk(private.public_key())), "kid": kid, "use": "sig"})
        body = json.dumps({"keys": [*found, *self.server.more]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer() as issuer:
        thread = threading.Thread(target=issuer.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield issuer
        issuer.shutdown()
        thread.join()


ACME = {"app_metadata": {"tenant_id": "acme", "afterwrite_scopes": ["read"]}}


@pytest.fixture(scope="module")
def tokened(dsn: str, issuer: Issuer) -> Iterator[Client]:
    """A server that was told where the keys of a Supabase project are, and no more."""
    with serving(Settings(dsn=dsn, serve_auth="required", serve_jwks_url=issuer.url)) as client:
        yield client


def ids_of(client: Client) -> list[str]:
    answer = client.get("/v1/activities?q=action:order.placed")
    assert answer.status == 200, answer
    return sorted(each["entity_id"] for each in answer.json["items"])


def test_a_key_opens_what_its_scopes_say_until_it_is_revoked(
    client: Client, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_KEY_SECONDS", 0.5)
    reading, taking, all_of_it = (key(dsn, f"may {scope}", scope) for scope in ("read", "ingest", "admin"))
    assert client.get("/v1/me").status == 401
    assert client.get("/v1/me").headers["www-authenticate"] == "Bearer"
    assert client.with_key(reading).get("/v1/me").json == {
        "name": "may read", "kind": "key", "scopes": ["read"], "tenant": None
    }  # fmt: skip
    assert client.with_key(taking).get("/v1/me").status == 403
    assert client.with_key(reading).post("/v1/activities", {"activities": []}).status == 403
    assert client.with_key(all_of_it).post("/v1/activities", {"activities": []}).status == 200
    for wrong in (reading[:-1] + "x", "aw_000000000000_" + reading[-40:], "aw__", "Basic", "ü", reading + "x"):
        assert client.with_key(wrong).get("/v1/me").status == 401, wrong
    assert client.get("/v1/me", Authorization=f"Basic {reading}").status == 401

    async def revoke() -> None:
        async with connect(dsn) as db:
            await revoke_key(db, "may read")

    asyncio.run(revoke())
    deadline = time.monotonic() + 7
    while client.with_key(reading).get("/v1/me").status != 401:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_key_is_shown_once_and_kept_as_a_hash(dsn: str) -> None:
    text = key(dsn, "hashed", "read", expires_at=NOW + timedelta(days=1))
    parts = split_key(text)
    assert parts is not None
    with psycopg.connect(dsn) as connection:
        row = connection.execute("select k::text from afterwrite.api_key k where name = 'hashed'").fetchone()
    assert row is not None
    assert parts[1] not in row[0]

    async def scenario() -> None:
        async with connect(dsn) as db:
            (found,) = [each for each in await list_keys(db) if each.name == "hashed"]
            assert found.holds(NOW)
            assert not found.holds(NOW + timedelta(days=2))
            with pytest.raises(UsageError, match="already"):
                await make_key(db, "hashed", ["read"])
            for name, tenant, expires_at in (("", None, None), ("x\n", None, None), ("y", "", None), ("z", None, NOW)):
                with pytest.raises(UsageError):
                    await make_key(db, name, ["read"], tenant=tenant, expires_at=expires_at)
            await revoke_key(db, found.id)
            await make_key(db, "hashed", ["read"])  # the name is free again
            with pytest.raises(UsageError, match="no living key"):
                await revoke_key(db, "nobody")

    asyncio.run(scenario())


def test_guessing_keys_is_slowed_down(dsn: str) -> None:
    good = key(dsn, "patient", "read")
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        statuses = [client.with_key(f"aw_{number:012x}_guess").get("/v1/me").status for number in range(34)]
        assert statuses[:30] == [401] * 30
        assert statuses[-1] == 429
        assert client.with_key(good).get("/v1/me").status == 429  # from the same address
    with serving(Settings(dsn=dsn, serve_auth="required")) as client:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        statuses = [client.post("/login", b"key=aw_%012x_guess" % number, **form).status for number in range(34)]
        assert (statuses[:30], statuses[-1]) == ([401] * 30, 429)


def test_an_address_is_its_own_and_of_ipv6_a_households(dsn: str) -> None:
    def house(client: str) -> str | None:
        return meet({"headers": [], "client": (client, 5), "server": ("10.0.0.1", 80), "scheme": "http"}, ()).house

    assert house("192.0.2.7") != house("192.0.2.8")
    assert house("::ffff:192.0.2.7") == house("192.0.2.7")
    assert house("2001:db8:1:2::1") == house("2001:db8:1:2:3:4:5:6") != house("2001:db8:1:3::1")


def test_supabases_tokens_hold_by_its_address_alone_and_see_one_tenant(tokened: Client, issuer: Issuer) -> None:
    acme = tokened.with_key(issuer.sign(**ACME))
    assert acme.get("/v1/me").json == {"name": "7f0c", "kind": "user", "scopes": ["read"], "tenant": "acme"}
    assert ids_of(acme) == ["1"]
    for number, (status, claims) in enumerate(
        [
            (401, {"exp": int(time.time()) - 60}),
            (401, {"exp": None}),
            (401, {"nbf": int(time.time()) + 600}),
            (401, {"aud": "somebody else"}),
            (401, {"aud": None}),
            (401, {"iss": "https://elsewhere.example/auth/v1"}),
            (401, {"sub": None}),
            (401, {"sub": ""}),
            (403, {"app_metadata": {"afterwrite_scopes": ["read"]}}),
            (403, {"app_metadata": {"tenant_id": "", "afterwrite_scopes": ["read"]}}),
            (403, {"app_metadata": {"tenant_id": ["acme"], "afterwrite_scopes": ["read"]}}),
            (403, {"app_metadata": {"tenant_id": "acme"}}),
            (403, {"app_metadata": {"tenant_id": "acme", "afterwrite_scopes": "none"}}),
            (403, {"user_metadata": ACME["app_metadata"], "app_metadata": {}}),
        ]
    ):
        assert tokened.with_key(issuer.sign(**{**ACME, **claims})).get("/v1/me").status == status, number


def test_nothing_is_believed_that_is_not_signed_by_a_published_key(tokened: Client, issuer: Issuer) -> None:
    good = issuer.sign(**ACME)
    head, body, signature = good.split(".")

    def coded(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    other = ec.generate_private_key(ec.SECP256R1())
    public = issuer.keys["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    claims = jwt.decode(good, options={"verify_signature": False})

    def mac(text: str, secret: bytes) -> str:
        return base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), "sha256")).rstrip(b"=").decode()

    confused = f"{coded({'alg': 'HS256', 'kid': 'one'})}.{body}"
    forged = [
        f"{coded({'alg': 'none', 'typ': 'JWT'})}.{body}.",
        f"{coded({'alg': 'None', 'kid': 'one'})}.{body}.{signature}",
        # The published key as if it were a shared secret.
        f"{confused}.{mac(confused, public)}",
        jwt.encode(claims, other, algorithm="ES256", headers={"kid": "one"}),
        jwt.encode(
            claims, other, algorithm="ES256", headers={"jwk": json.loads(ECAlgorithm.to_jwk(other.public_key()))}
        ),
        f"{head}.{coded({**claims, 'app_metadata': {'tenant_id': 'other'}})}.{signature}",
        f"{head}.{body}",
        good[:-4] + "AAAA",
        "e" * 20_000,
    ]
    for token in forged:
        assert tokened.with_key(token).get("/v1/me").status in (401, 431), token[:60]


def test_a_new_key_is_fetched_when_it_is_named_and_not_for_every_guess(
    dsn: str, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_FRESH_SECONDS", 0.3)
    with serving(Settings(dsn=dsn, serve_auth="required", serve_jwks_url=issuer.url)) as client:
        assert client.with_key(issuer.sign(**ACME)).get("/v1/me").status == 200
        asked = issuer.asked
        issuer.keys["two"] = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        issuer.more = [{"kty": "oct", "kid": "published", "k": "c2VjcmV0", "alg": "HS256"}, {"kty": "odd"}]
        token = issuer.sign("two", "RS256", **ACME)
        time.sleep(0.35)
        assert client.with_key(token).get("/v1/me").status == 200
        for number in range(10):
            issuer.keys["gone"] = issuer.keys["one"]
            guess = issuer.sign("gone", **ACME, jti=str(number))
            del issuer.keys["gone"]
            assert client.with_key(guess).get("/v1/me").status == 401
        assert issuer.asked - asked <= 3
        wrong = jwt.encode(jwt.decode(token, options={"verify_signature": False}), "c2VjcmV0" * 5, algorithm="HS256",
                           headers={"kid": "published"})  # fmt: skip
        assert client.with_key(wrong).get("/v1/me").status == 401


def test_a_shared_secret_is_taken_where_it_is_configured(dsn: str) -> None:
    settings = Settings(
        dsn=dsn, serve_auth="required", serve_jwt_secret=SECRET, serve_jwt_audience="logs", serve_jwt_scopes=("read",),
        serve_jwt_tenant_claim="org.id",
    )  # fmt: skip
    with serving(settings) as client:
        claims = {"sub": "bob", "aud": "logs", "exp": int(time.time()) + 60, "org": {"id": 7}}
        found = client.with_key(jwt.encode(claims, SECRET, algorithm="HS256")).get("/v1/me")
        assert found.json == {"name": "bob", "kind": "user", "scopes": ["read"], "tenant": "7"}
        assert client.with_key(jwt.encode(claims, SECRET + "x", algorithm="HS256")).get("/v1/me").status == 401
        less = {**claims, "scope": "afterwrite:ingest openid"}
        assert client.with_key(jwt.encode(less, SECRET, algorithm="HS256")).get("/v1/me").status == 403


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"serve_jwks_url": "http://keys.example.com/jwks"}, "no https"),
        ({"serve_jwks_url": "file:///etc/passwd"}, "no https"),
        ({"serve_jwks_url": "https://keys.example.com/jwks"}, "whoever they were made for"),
        ({"serve_jwt_secret": SECRET, "serve_jwt_audience": "a", "serve_jwt_algorithms": ("none",)}, "none"),
        ({"serve_jwt_secret": SECRET, "serve_jwt_audience": "a", "serve_jwt_algorithms": ("RS256",)}, "RS256"),
        ({"serve_jwks_url": "https://x.supabase.co", "serve_jwt_tenant_claim": "user_metadata.t"}, "write themselves"),
        ({"serve_proxy_header": "X-User"}, "anybody could say"),
        ({"serve_trusted_proxies": ("nowhere",)}, "no network"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Auth(Settings(dsn="host=/nowhere", **given), Readers(Settings(dsn="host=/nowhere")))


def test_a_supabase_project_is_known_by_its_address() -> None:
    for url in ("https://abc.supabase.co", "https://abc.supabase.co/auth/v1/.well-known/jwks.json"):
        found = read_issuer(Settings(serve_jwks_url=url))
        assert found is not None
        assert found.jwks_url == "https://abc.supabase.co/auth/v1/.well-known/jwks.json"
        assert (found.issuer, found.audience) == ("https://abc.supabase.co/auth/v1", "authenticated")
        assert found.needs_tenant
        assert not found.given
        assert not set(found.algorithms) & {"HS256", "none"}


def test_it_does_not_start_where_it_would_be_open_or_closed_to_all(server: Any) -> None:
    def start(**given: Any) -> list[str]:
        return asyncio.run(check_start(Settings(dsn=dsn, **given)))

    with store(server) as dsn:
        assert start() == []
        with pytest.raises(Refused, match="no key") as caught:
            start(serve_host="0.0.0.0")
        assert "afterwrite key create" in (caught.value.remedy or "")
        with pytest.raises(Refused, match="lets them all in"):
            start(serve_host="::", serve_auth="off")
        with pytest.raises(Refused, match="no key"):
            start(serve_auth="required")
        assert start(serve_host="0.0.0.0", serve_jwks_url="https://abc.supabase.co") == []
        key(dsn, "first", expires_at=datetime.now(UTC) + timedelta(seconds=0.4))
        assert start(serve_host="0.0.0.0") == []
        time.sleep(0.5)
        with pytest.raises(Refused, match="no key"):
            start(serve_host="0.0.0.0")
        key(dsn, "acme's", tenant="acme")
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("alter table afterwrite.activity disable row level security")
        (warning,) = start()
        assert "row-level security is off" in warning
        with serving(Settings(dsn=dsn, serve_auth="required")) as client:
            tenants = client.with_key(key(dsn, "acme's two", tenant="acme"))
            assert tenants.get("/v1/activities").status == 503
            assert tenants.get("/v1/activities?q=tenant:acme").status == 503


def test_this_machine_is_let_in_and_nobody_who_was_sent_on(dsn: str) -> None:
    with serving(Settings(dsn=dsn)) as client:
        assert client.get("/v1/me").json["kind"] == "local"
        port = client.url.rpartition(":")[2]
        assert client.get("/v1/me", Host=f"localhost:{port}").status == 200
        for headers in (
            {"Host": "evil.example"},
            {"Host": f"evil.example:{port}"},
            {"X_Forwarded_For": "203.0.113.9"},
            {"Forwarded": "for=203.0.113.9"},
            {"X_Real_IP": "203.0.113.9"},
            {"Via": "1.1 somewhere"},
            {"X_Forwarded_Proto": "https"},
            {"Origin": "https://evil.example"},
            {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
            {"Authorization": "Bearer aw_x_y"},
        ):
            assert client.get("/v1/me", **headers).status == 401, headers
        # A link that somebody followed.
        assert client.get("/v1/me", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200
        event = {"activities": []}
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ):
            assert client.post("/v1/activities", event, **headers).status == 403, headers
        assert client.post("/v1/activities", event, Origin=client.url, Sec_Fetch_Site="same-origin").status == 200
    with serving(Settings(dsn=dsn, serve_host="0.0.0.0")) as client:  # told so, whatever it is bound to
        assert client.get("/v1/me").status == 401
    with serving(Settings(dsn=dsn), host="0.0.0.0") as client:  # bound by somebody else's hand
        assert client.get("/v1/me").status == 200
        assert client.get("/v1/me", Host="10.0.0.5").status == 401


def test_a_page_that_may_call_needs_a_key_for_that_also_on_this_machine(dsn: str) -> None:
    page = {"Origin": "https://admin.example.com"}
    with serving(Settings(dsn=dsn, serve_cors_origins=("https://admin.example.com",))) as client:
        assert client.get("/v1/activities", **page).status == 401
        assert client.with_key(key(dsn, "a page's")).get("/v1/activities", **page).status == 200


def test_whom_a_proxy_of_ours_brings_is_not_this_machine(dsn: str) -> None:
    settings = Settings(dsn=dsn, serve_proxy_header="X-User", serve_trusted_proxies=("127.0.0.1",))
    with serving(settings) as client:
        assert client.get("/v1/me").status == 401
        assert client.get("/v1/me", X_User="bob").json["kind"] == "proxied"


def test_cookies_are_read_in_no_time_whatever_stands_in_them() -> None:
    def visit(cookie: str) -> Any:
        raw = [(b"host", b"localhost"), (b"cookie", cookie.encode())]
        return meet({"headers": raw, "client": ("127.0.0.1", 5), "server": ("127.0.0.1", 80), "scheme": "http"}, ())

    assert visit("a=b; c=d;e=f=g; =x; y").cookie("c") == "d"
    assert visit("a=b; c=d;e=f=g; =x; y").cookie("e") == "f=g"
    assert visit("a=b; c=d").cookie("f") is None
    began = time.process_time()
    assert visit('a="' + "\\1" * 20_000 + '"').cookie(SESSION_COOKIE) is None
    assert time.process_time() - began < 0.1


def test_a_visit_is_local_only_from_and_to_this_machine() -> None:
    def visit(client: str, server: str, **headers: str) -> Any:
        raw = [
            (name.replace("_", "-").encode(), value.encode())
            for name, value in {"host": "localhost", **headers}.items()
        ]
        return meet({"headers": raw, "client": (client, 5), "server": (server, 80), "scheme": "http"}, ())

    assert visit("127.0.0.1", "127.0.0.1").is_local
    assert visit("::1", "::1", host="[::1]:80").is_local
    assert visit("::ffff:127.0.0.1", "::ffff:127.0.0.1").is_local
    assert not visit("10.0.0.7", "127.0.0.1").is_local
    assert not visit("127.0.0.1", "10.0.0.5").is_local
    assert not visit("127.0.0.1", "127.0.0.1", via_nobody="x", x_forwarded_for="").is_local
    assert [is_loopback(host) for host in ("localhost", "127.0.0.9", "[::1]", "0.0.0.0", "::", "example.com")] == [
        True, True, True, False, False, False
    ]  # fmt: skip


def test_a_proxys_word_counts_only_from_where_it_is_trusted(dsn: str) -> None:
    trusting = {"serve_auth": "required", "serve_proxy_header": "X-User", "serve_proxy_tenant_header": "X-Org"}
    with serving(Settings(dsn=dsn, serve_trusted_proxies=("127.0.0.0/8",), **trusting)) as client:
        found = client.get("/v1/me", X_User="bob", X_Org="acme").json
        assert found == {"name": "bob", "kind": "proxied", "scopes": ["read"], "tenant": "acme"}
        assert client.get("/v1/me", X_User="bob").status == 403
        assert client.get("/v1/me", X_User="").status == 401
        assert client.get("/v1/me").status == 401
    with serving(Settings(dsn=dsn, serve_trusted_proxies=("192.0.2.1",), **trusting)) as client:
        assert client.get("/v1/me", X_User="bob", X_Org="acme").status == 401


def test_who_stands_behind_a_proxy_is_read_from_the_right() -> None:
    from afterwrite.serve.auth import read_proxies

    proxies = read_proxies(Settings(serve_trusted_proxies=("10.0.0.0/8",)))

    def client(peer: str, said: str) -> str | None:
        headers = [(b"host", b"x"), (b"x-forwarded-for", said.encode())]
        return meet(
            {"headers": headers, "client": (peer, 1), "server": ("10.0.0.1", 1), "scheme": "http"}, proxies
        ).client

    assert client("10.1.1.1", "1.1.1.1, 203.0.113.9, 10.2.2.2") == "203.0.113.9"
    assert client("10.1.1.1", "whatever") == "10.1.1.1"
    assert client("203.0.113.9", "1.1.1.1") == "203.0.113.9"


def test_a_session_is_a_key_in_a_cookie_and_ends_with_it(client: Client, dsn: str) -> None:
    text = key(dsn, "person", "read", tenant="acme")

    async def log_in(word: str) -> str:
        settings = Settings(dsn=dsn)
        readers = Readers(settings)
        try:
            return await Auth(settings, readers).log_in(word)
        finally:
            await readers.close()

    cookie = f"{SESSION_COOKIE}={asyncio.run(log_in(text))}"
    assert client.get("/v1/me", Cookie=cookie).json["name"] == "person"
    assert client.get("/v1/me", Cookie=f"{cookie}x").status == 401
    assert client.get("/v1/me", Cookie=f"{SESSION_COOKIE}=aw_x_y").status == 401
    posting = client.with_key(None)
    assert posting.post("/v1/activities", {}, Cookie=cookie, Origin="https://evil.example").status == 403
    for wrong in ("", "nothing", text[:-1]):
        with pytest.raises(AfterwriteError):
            asyncio.run(log_in(wrong))
    with pytest.raises(AfterwriteError, match="scope"):
        asyncio.run(log_in(key(dsn, "writer", "ingest")))
