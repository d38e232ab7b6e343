"""The door to NATS: who we are there, one connection that is opened once and never mended, and errors in our own words.

nats-py is asked for when a connection is made and not before: an application that records elsewhere need not have it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from afterwrite.configfile import is_broker
from afterwrite.errors import AfterwriteError, ConnectionLost, UsageError

_INSTALL = "pip install 'afterwrite[nats]'"
_CONNECT_SECONDS = 3
_API_SECONDS = 5.0
_CLOSE_SECONDS = 1.0
_NO_RESPONDERS = "503"
# What a connection may hold that was written and is not sent.
_PENDING_BYTES = 32 << 20

_INBOX = re.compile(r"_INBOX(?:\.[A-Za-z0-9_-]+)+")

Hear = Callable[[Any], Awaitable[None]]


def is_inbox(subject: str) -> bool:
    """Whether this is where somebody waits for an answer, and nothing that does or keeps what it is told."""
    return _INBOX.fullmatch(subject) is not None


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the brokers are, which stream is ours there, and as whom we come; files are named and read when needed."""

    urls: tuple[str, ...]
    stream: str = "AFTERWRITE"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials: str | None = None
    nkey: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    @property
    def where(self) -> str:
        """The servers for messages: never a password."""
        return ",".join(f"{urlsplit(url).hostname}:{urlsplit(url).port or 4222}" for url in self.urls)


def read_access(url: str, **given: str | None) -> Access:
    """The access that these settings say; several servers stand with commas between them.

    Raises UsageError where they cannot be meant.
    """
    urls = tuple(each.strip() for each in url.split(",") if each.strip())
    for each in urls:
        parts = urlsplit(each)
        if not is_broker(each) or not parts.hostname:
            # What stands before an @ may be a password.
            said = f"{parts.scheme}://{parts.hostname}" if parts.hostname else each.rpartition("@")[2]
            raise UsageError(
                f"{said} is no address of a broker",
                remedy="write it as nats://broker-1.example.com:4222,nats://broker-2.example.com:4222 (or tls://…)",
            )
    if not urls:
        raise UsageError("no broker is named", remedy="set AFTERWRITE_NATS_URL, or --url")
    words = {name: value for name, value in given.items() if value is not None}
    for name in ("credentials", "nkey", "ca", "cert", "key"):
        if name in words and not Path(words[name]).is_file():
            raise UsageError(f"nats_{name} names a file that is not there: {words[name]}", remedy="mend the setting")
    if ("cert" in words) != ("key" in words):
        raise UsageError("nats_cert and nats_key go together", remedy="set both, or none")
    return Access(urls=urls, **words)


class Link:
    """One connection. When it is lost it stays so: whoever has it closes it and opens another."""

    def __init__(self, client: Any, access: Access, said: list[Exception]) -> None:
        self._client = client
        self._said = said
        self._access = access
        self._acks: dict[str, asyncio.Future[None]] = {}
        self._acks_inbox = ""
        self._published = 0
        self.lost = asyncio.Event()

    @property
    def max_payload(self) -> int:
        """The longest message that the server takes."""
        return int(self._client.max_payload)

    @property
    def version(self) -> tuple[int, int]:
        """The server's."""
        found = self._client.connected_server_version
        return int(found.major), int(found.minor)

    def new_inbox(self) -> str:
        return str(self._client.new_inbox())

    async def ask(
        self, subject: str, question: Mapping[str, Any] | None = None, *, seconds: float = _API_SECONDS
    ) -> dict[str, Any]:
        """Ask JetStream; raises ApiError with its words where it says no, ConnectionLost after so many seconds."""
        with self._explained(), translated(self._access):
            answer = await self._client.request(
                f"$JS.API.{subject}", msgspec.json.encode(question or {}), timeout=seconds
            )
        said: dict[str, Any] = msgspec.json.decode(answer.data)
        error = said.get("error")
        if error is not None:
            raise ApiError(str(error.get("description", error)), code=int(error.get("err_code", 0)))
        return said

    async def inquire(self, subject: str, question: bytes) -> bytes | None:
        """Ask whoever listens there; None where nobody does."""
        try:
            with self._explained(), translated(self._access):
                answer = await self._client.request(subject, question, timeout=_API_SECONDS)
        except NobodyError:
            return None
        return bytes(answer.data)

    async def hear(self, subject: str, callback: Hear, *, queue: str = "") -> None:
        """Have what comes there; with others of the same queue, what none of them is given."""
        with translated(self._access):
            await self._client.subscribe(subject, queue, cb=callback, pending_bytes_limit=256 << 20)

    async def tell(
        self, subject: str, payload: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a message that nobody confirms."""
        with translated(self._access):
            await self._client.publish(subject, payload, reply=reply, headers=headers)

    async def publish(self, subject: str, payload: bytes, headers: Mapping[str, str]) -> asyncio.Future[None]:
        """Send a message into a stream; what it gives is done when the stream has it, or raises why it has not."""
        # nats-py's own way forgets whoever waits where the answer is that the stream is full.
        if not self._acks_inbox:
            self._acks_inbox = self.new_inbox()
            await self.hear(f"{self._acks_inbox}.*", self._hear_ack)
        self._published += 1
        reply = f"{self._acks_inbox}.{self._published}"
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._acks[reply] = future
        future.add_done_callback(lambda _: self._acks.pop(reply, None))
        await self.tell(subject, payload, reply=reply, headers=headers)
        return future

    async def _hear_ack(self, message: Any) -> None:
        future = self._acks.get(str(message.subject))
        if future is None or future.done():
            return
        headers: Mapping[str, str] = message.headers or {}
        if headers.get("Status") == _NO_RESPONDERS:
            future.set_exception(nobody(self._access))
            return
        try:
            answer = msgspec.json.decode(message.data, type=_Ack)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            future.set_exception(ApiError(f"what is no answer: {error}", code=0))
            return
        if answer.error is not None:
            future.set_exception(ApiError(answer.error.description, code=answer.error.err_code))
        elif not answer.stream:
            future.set_exception(ApiError("what names no stream that has it", code=0))
        else:
            future.set_result(None)

    def need_rights(self) -> None:
        """Raise ConnectionLost where the server said that we lack a right: who waits would hear nothing else."""
        for said in self._said:
            if "permissions violation" in str(said).lower():
                words = str(said).removeprefix("nats: ").strip("'")
                raise ConnectionLost(
                    f"{self._access.where} does not let this account do so: {words}",
                    remedy="give it the rights that docs/scale.md names",
                )

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Where nothing comes, say whether it is for want of a right."""
        try:
            yield
        except ConnectionLost:
            self.need_rights()
            raise

    async def flush(self) -> None:
        with translated(self._access):
            await self._client.flush(timeout=_API_SECONDS)


class _Error(msgspec.Struct):
    description: str = "no reason"
    err_code: int = 0


class _Ack(msgspec.Struct):
    stream: str = ""
    error: _Error | None = None


class ApiError(AfterwriteError):
    """JetStream was asked and said no; ``code`` is its own number for why."""

    def __init__(self, message: str, *, code: int, remedy: str | None = None) -> None:
        super().__init__(f"JetStream says: {message}", remedy=remedy)
        self.said = message
        self.code = code


@asynccontextmanager
async def connect(access: Access, *, name: str, inbox: str = "_INBOX") -> AsyncGenerator[Link]:
    """A connection to any of the servers, each tried once, in an order of chance. Raises ConnectionLost for none.

    ``inbox`` is where it is answered. Whoever may hear one inbox of a name hears all of them.
    """
    client, link = None, None
    troubles: list[str] = []
    for url in random.sample(access.urls, len(access.urls)):
        lost = asyncio.Event()
        said: list[Exception] = []
        try:
            client = await _open(access, url, name, lost, said, inbox)
        except ConnectionLost as error:
            troubles.append(str(error))
            continue
        link = Link(client, access, said)
        link.lost = lost
        break
    if client is None or link is None:
        raise ConnectionLost(
            f"no broker of {access.where} can be reached: {troubles[-1]}",
            remedy="look at the address, and whether nats-server runs there",
        )
    try:
        yield link
    finally:
        await _close(client)


async def _close(client: Any) -> None:
    """End the connection; a server that stands still is not waited for."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await client.close()


async def _open(access: Access, url: str, name: str, lost: asyncio.Event, said: list[Exception], inbox: str) -> Any:
    """``said`` gets the last error that the server told."""
    nats = _import()
    words: dict[str, Any] = {}
    if access.credentials:
        words["user_credentials"] = access.credentials
    if access.nkey:
        words["nkeys_seed"] = access.nkey
    for word, value in (("user", access.user), ("password", access.password), ("token", access.token)):
        if value is not None:
            words[word] = value
    if access.ca or access.cert or url.startswith("tls://"):
        words["tls"] = _tls(access)

    async def heard_lost(*_: object) -> None:
        lost.set()

    async def heard_error(error: Exception) -> None:
        # What matters of it reaches whoever waits; nats-py would print the rest.
        said[:] = [error]
        if isinstance(error, nats.errors.SlowConsumerError):
            lost.set()

    client: Any = nats.NATS()
    if "tls" in words:
        _insist_on_tls(client, access)
    with translated(access):
        try:
            await client.connect(
                [url],
                name=name,
                inbox_prefix=inbox,
                allow_reconnect=False,
                # Without these it tries for two minutes what it cannot reach, also where it is not to reconnect.
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=_CONNECT_SECONDS,
                pending_size=_PENDING_BYTES,
                ping_interval=5,
                max_outstanding_pings=2,
                error_cb=heard_error,
                disconnected_cb=heard_lost,
                closed_cb=heard_lost,
                **words,
            )
        except BaseException as error:
            # It leaves open what it could not come in by.
            await _close(client)
            if isinstance(error, nats.errors.NoServersError) and said:
                raise said[0] from error
            raise
    return client


def _import() -> Any:
    try:
        nats = import_module("nats")
    except ImportError as error:
        raise UsageError("a broker needs the library nats-py, which is not installed", remedy=_INSTALL) from error
    return nats


def _insist_on_tls(client: Any, access: Access) -> None:
    """Have nothing said to a server that asks for no TLS: nats-py would go on in the clear, password and all."""
    listen = client._process_info

    async def hear(info: dict[str, Any], initial_connection: bool = False) -> None:
        if initial_connection and not info.get("tls_required"):
            raise AfterwriteError(
                f"{access.where} asks for no TLS, and was told nothing",
                remedy="set up `tls` in nats-server's configuration, or leave out tls://, nats_ca and nats_cert",
            )
        await listen(info, initial_connection=initial_connection)

    client._process_info = hear


def _tls(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=access.ca)
        if access.cert:
            context.load_cert_chain(access.cert, access.key)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the certificates of nats_ca, nats_cert and nats_key cannot be used: {error}") from error
    return context


class NobodyError(AfterwriteError):
    """A subject has no stream, and nobody who listens."""


def nobody(access: Access) -> NobodyError:
    """What is said where a subject has no stream."""
    return NobodyError(
        f"nothing at {access.where} answers for the stream {access.stream}: no JetStream, no such stream, "
        "or no leader just now",
        remedy="run `afterwrite broker check`; `afterwrite broker install --apply` makes the stream",
    )


@contextmanager
def translated(access: Access) -> Generator[None]:
    """Errors of nats-py, in ours."""
    nats = _import()
    try:
        yield
    except nats.errors.NoRespondersError as error:
        raise nobody(access) from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        words = str(error).removeprefix("nats: ").strip("'") or type(error).__name__
        if "authorization" in words.lower() or "authentication" in words.lower():
            raise AfterwriteError(
                f"{access.where} does not let us in: {words}",
                remedy="look at nats_user, nats_password, nats_token, nats_credentials and nats_nkey",
            ) from error
        raise ConnectionLost(
            f"{access.where}: {words}", remedy="look at the address, and whether nats-server runs there"
        ) from error
