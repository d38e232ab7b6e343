"""Who and why: the context that a writer stamps into its own transaction's WAL."""

from __future__ import annotations

import msgspec

from afterwrite.errors import AfterwriteError


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did it and why, as known to the application that wrote.

    ``settings`` are the transaction's own settings (``request.jwt.claims`` and such) that a deferred trigger body
    reads; ``caused_by`` is the id of the activity that led to this transaction, where one did.
    """

    actor_id: str | None = None
    actor_type: str | None = None
    tenant_id: str | None = None
    session_id: str | None = None
    request_id: str | None = None
    trace_id: str | None = None
    ip: str | None = None
    user_agent: str | None = None
    reason: str | None = None
    settings: dict[str, str] = {}
    caused_by: str | None = None


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Context)


def encode_context(context: Context) -> str:
    """The stamp's payload: ``select pg_logical_emit_message(true, 'afterwrite.context', payload)``."""
    return _encoder.encode(context).decode()


def decode_context(payload: bytes) -> Context:
    """Read a stamp; raises AfterwriteError when it is not one (the caller counts it, and stores without context)."""
    try:
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AfterwriteError(f"a context stamp cannot be read: {error}") from error
