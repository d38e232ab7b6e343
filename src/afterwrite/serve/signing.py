"""Texts that callers carry about and cannot alter: cursors and sessions, sealed with the store's own secret."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

_MAC_BYTES = 16
_LONGEST = 4_096


class ForgedError(Exception):
    """The text was not sealed here, or for another purpose."""


class Signer:
    """Seals short values for one ``purpose`` each: what was sealed for another does not open."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def seal(self, purpose: str, value: object) -> str:
        """A text for URLs and cookies."""
        data = msgspec.msgpack.encode(value)
        return base64.urlsafe_b64encode(data + self._mac(purpose, data)).rstrip(b"=").decode()

    def open(self, purpose: str, text: str) -> object:
        """What was sealed; raises ForgedError for anything else."""
        if len(text) > _LONGEST or not text.isascii():
            raise ForgedError
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise ForgedError from None
        if base64.urlsafe_b64encode(sealed).rstrip(b"=").decode() != text:
            raise ForgedError  # the same bytes, written otherwise
        data, mac = sealed[:-_MAC_BYTES], sealed[-_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(purpose, data)):
            raise ForgedError
        return msgspec.msgpack.decode(data)

    def _mac(self, purpose: str, data: bytes) -> bytes:
        return hmac.digest(self._secret, purpose.encode() + b"\0" + data, hashlib.sha256)[:_MAC_BYTES]
