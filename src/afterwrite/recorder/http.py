"""A sink that is another process's API: ``POST /v1/activities``, for applications that must not reach the store itself.

Ids make it safe to send again. The answer says which activities were not taken::

    {"activities": [{"id": …, "occurred_at": …}, …]}  ──▶  200 {"stored": 2, "refused": [{"id": …, "reason": …}]}

413 and 422 are about the content, and the courier looks for the one that it is about. After anything else it tries
again later, not before ``Retry-After``.
"""

from __future__ import annotations

import asyncio
import gzip
import http.client
import ssl
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import urlsplit

import msgspec

from afterwrite.errors import AfterwriteError, ConnectionLost, UsageError
from afterwrite.record import Batch, Receipt
from afterwrite.recorder.deliver import LaterError, NotTaken, OpenSink, Unstorable
from afterwrite.recorder.spool import without_absent

PATH = "/v1/activities"
_TIMEOUT_SECONDS = 30.0
_GZIPPED_BYTES = 1_000
_MOST_ANSWER_BYTES = 16 << 20
_CONTENT = frozenset({413, 422})
_LATER = frozenset({429, 503})


class Refused(msgspec.Struct):
    """One activity that the other side does not take."""

    id: str
    reason: str = ""


class Answer(msgspec.Struct):
    """What the other side did with a batch."""

    stored: int
    refused: list[Refused] = []


def http_sink(url: str, key: str | None = None, *, timeout: float = _TIMEOUT_SECONDS) -> OpenSink:
    """What opens a sink that posts to ``url`` (its ``/v1/activities``), with ``key`` as bearer token."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"record_url is no http address: {url!r}", remedy="write it as https://activity.example.com")
    path = parts.path.rstrip("/")
    path = path if path.endswith(PATH) else f"{path}{PATH}"
    headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "afterwrite"}
    if key:
        if not key.isascii() or not key.isprintable():
            raise UsageError("record_key has characters that no header can hold", remedy="mend AFTERWRITE_RECORD_KEY")
        headers["Authorization"] = f"Bearer {key}"

    def connect() -> http.client.HTTPConnection:
        host = parts.hostname or ""
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, parts.port, timeout=timeout)

    @asynccontextmanager
    async def open_sink() -> AsyncGenerator[HttpSink]:
        connection = connect()
        try:
            yield HttpSink(connection, path, headers)
        finally:
            connection.close()

    def opened() -> AbstractAsyncContextManager[HttpSink]:
        return open_sink()

    return opened


class HttpSink:
    """Posts batches over one connection, which is opened again after it was lost."""

    def __init__(self, connection: http.client.HTTPConnection, path: str, headers: dict[str, str]) -> None:
        self._connection = connection
        self._path = path
        self._headers = headers
        self._where = f"{connection.host}:{connection.port}"

    async def write(self, batch: Batch) -> Receipt:
        """Have the other side store the batch. Raises NotTaken where it did so with all but some."""
        body = b'{"activities":' + msgspec.json.encode([without_absent(each) for each in batch.activities]) + b"}"
        status, said, wait = await asyncio.to_thread(self._post, body)
        if status in _CONTENT:
            raise Unstorable(f"{self._where} does not take a batch: HTTP {status} {_words(said)}")
        if status in _LATER:
            raise LaterError(f"{self._where} asks to come later: HTTP {status} {_words(said)}", seconds=wait)
        if not 200 <= status < 300:
            remedy = "look at AFTERWRITE_RECORD_KEY" if status in {401, 403} else "look at AFTERWRITE_RECORD_URL"
            raise AfterwriteError(f"{self._where} does not store: HTTP {status} {_words(said)}", remedy=remedy)
        try:
            answer = msgspec.json.decode(said, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AfterwriteError(
                f"{self._where} answers as no afterwrite does: {error}", remedy="look at AFTERWRITE_RECORD_URL"
            ) from error
        if answer.refused:
            raise NotTaken({each.id: each.reason for each in answer.refused})
        return Receipt(batch_id=None, position=None, stored=answer.stored)

    def _post(self, body: bytes) -> tuple[int, bytes, float | None]:
        headers = dict(self._headers)
        if len(body) > _GZIPPED_BYTES:
            body = gzip.compress(body, 5)
            headers["Content-Encoding"] = "gzip"
        kept = self._connection.sock is not None
        try:
            return self._exchange(body, headers)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            if not kept or isinstance(error, TimeoutError):
                raise self._lost(error) from error
        # A connection that was kept may have been closed by the other side meanwhile.
        try:
            return self._exchange(body, headers)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise self._lost(error) from error

    def _exchange(self, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, float | None]:
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        said = answer.read(_MOST_ANSWER_BYTES)
        if not answer.isclosed():
            self._connection.close()  # more than anybody needs to say
        wait = answer.getheader("Retry-After", "")
        return answer.status, said, float(wait) if wait.isdigit() else None

    def _lost(self, error: Exception) -> ConnectionLost:
        return ConnectionLost(
            f"{self._where} cannot be reached: {type(error).__name__}: {error}",
            remedy="look at AFTERWRITE_RECORD_URL and whether its server runs",
        )


def _words(said: bytes) -> str:
    return " ".join(said[:300].decode(errors="replace").split())
