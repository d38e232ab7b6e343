"""The envelope around stamps and events: whose key signed them. Pure.

::

    {"v": 1, "p": "<the payload's own text>", "h": "<base64 of HMAC-SHA256(key, prefix NUL payload)>"}

Every role may write a logical message. With a key only who has it can write one that is taken for the application's:
the prefix is signed too, so that a stamp cannot be sent as an event.
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

VERSION = 1


class _Envelope(msgspec.Struct, frozen=True):
    v: int
    p: str
    h: str


class Unsealed(msgspec.Struct, frozen=True, gc=False):
    """What was in an envelope, or the payload itself where there was none; ``signed`` by one of the keys."""

    payload: bytes
    signed: bool


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Envelope).decode


def split_keys(keys: str | None) -> tuple[str, ...]:
    """The keys of a setting: ``new,old`` while they are changed; the first signs, all verify."""
    return tuple(key for each in (keys or "").split(",") if (key := each.strip()))


def seal(prefix: str, payload: str, keys: str | None) -> str:
    """The payload in its envelope, or as it is where there is no key."""
    found = split_keys(keys)
    return (
        _encode(_Envelope(VERSION, payload, _sign(prefix, payload.encode(), found[0]))).decode() if found else payload
    )


def unseal(prefix: str, content: bytes, keys: tuple[str, ...]) -> Unsealed:
    """The payload, and whether one of these keys signed it. Never raises: what is no envelope is a payload."""
    # Stamps and events have no field called v, and we write this one first.
    if not content.startswith(b'{"v":'):
        return Unsealed(content, False)
    try:
        envelope = _decode(content)
        payload = envelope.p.encode()
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return Unsealed(content, False)
    if envelope.v != VERSION:
        return Unsealed(content, False)
    told = envelope.h.encode(errors="replace")
    return Unsealed(payload, any(hmac.compare_digest(_sign(prefix, payload, key).encode(), told) for key in keys))


def _sign(prefix: str, payload: bytes, key: str) -> str:
    digest = hmac.digest(key.encode(errors="surrogatepass"), prefix.encode() + b"\0" + payload, hashlib.sha256)
    return base64.b64encode(digest).decode()
