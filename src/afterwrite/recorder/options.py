"""What a recorder is told: in code, in ``AFTERWRITE_*`` and in the table ``[recorder]`` of afterwrite.toml alike."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta

from afterwrite.configfile import PREFIX, RECORDER, parse_size, parse_words, read_file, read_secret
from afterwrite.errors import UsageError
from afterwrite.seal import split_keys

log = logging.getLogger(__name__)

_SIZES = frozenset({"spool_bytes", "queue_bytes", "metadata_bytes"})
_LISTS = frozenset({"redact", "keep"})
_SECRETS = frozenset({"record_key", "stamp_key", "nats_password", "nats_token"})
_CALL = "the call"


class Durability(StrEnum):
    """What an event survives: nothing, its process's death, its machine's crash; or, where a broker stands between, its
    process's death and a broker that loses what it has acknowledged: the spool keeps it until the store has it."""

    MEMORY = "memory"
    SPOOL = "spool"
    SYNC = "sync"
    STORED = "stored"


class Overflow(StrEnum):
    """What happens to a new event when there is no room: it is dropped at once, or waits for room up to a deadline."""

    SHED = "shed"
    BLOCK = "block"


class EventsBy(StrEnum):
    """How events in a transaction go: as the server allows, always as a logical message, always by the outbox."""

    AUTO = "auto"
    MESSAGE = "message"
    OUTBOX = "outbox"


Count = Annotated[int, Meta(gt=0)]
Seconds = Annotated[float, Meta(gt=0)]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """All that may be said about a recorder; the defaults are meant to be right."""

    # The name under which its events stand in the store; None means the program's.
    service: Annotated[str, Meta(min_length=1)] | None = None
    # Where the spool lives; None means a folder of this user's (see find_folder). How many bytes all processes together
    # may keep there, and how long one may wait to be delivered before it is dropped (and counted).
    spool_dir: str | None = None
    spool_bytes: Count = 1 << 30
    spool_seconds: Seconds = 7 * 86_400.0
    durability: Durability = Durability.SPOOL
    # What happens when there is no room, and how long `block` waits for some.
    overflow: Overflow = Overflow.SHED
    block_seconds: Seconds = 0.2
    # What may wait in memory to be spooled.
    queue_events: Count = 50_000
    queue_bytes: Count = 32 << 20
    # Longer metadata is cut, with a mark.
    metadata_bytes: Annotated[int, Meta(ge=256)] = 64 << 10
    # Development: what is not right is refused at the call, where it is mended and counted otherwise.
    strict: bool = False
    # Further names and patterns that are taken out, beside those of redact.py; and names among those that are not.
    redact: tuple[str, ...] = ()
    redact_patterns: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    # Whether the context's address and browser are recorded.
    keep_ip: bool = True
    keep_user_agent: bool = True
    # How many events go to the store at once, and how long one may wait for others.
    batch_events: Annotated[int, Meta(gt=0, le=100_000)] = 1_000
    linger_seconds: Annotated[float, Meta(ge=0)] = 0.05
    # How long the end of the process may wait until everything is delivered.
    close_seconds: Annotated[float, Meta(ge=0)] = 3.0
    # Deliver by HTTP, or by a broker (nats://…): where to, and as whom.
    record_url: str | None = None
    record_key: str | None = None
    # The broker's stream, who we are there, and the files (authority, certificate, its key) of a line under TLS.
    nats_stream: Annotated[str, Meta(pattern="^[A-Za-z0-9_-]{1,32}$")] = "AFTERWRITE"
    nats_user: str | None = None
    nats_password: str | None = None
    nats_token: str | None = None
    nats_credentials: str | None = None
    nats_nkey: str | None = None
    nats_ca: str | None = None
    nats_cert: str | None = None
    nats_key: str | None = None
    # What stamps and events in transactions are signed with; from a file, what that says by then (see signing_key).
    stamp_key: str | None = None
    stamp_key_file: str | None = None
    # How events in transactions go, and the slot that capture reads: the worker's setting of that name.
    events: EventsBy = EventsBy.AUTO
    slot: Annotated[str, Meta(pattern="^[a-z0-9_]{1,63}$")] = "afterwrite"

    def __post_init__(self) -> None:
        # In code they may be plain words.
        msgspec.structs.force_setattr(self, "durability", Durability(self.durability))
        msgspec.structs.force_setattr(self, "overflow", Overflow(self.overflow))
        msgspec.structs.force_setattr(self, "events", EventsBy(self.events))
        if self.stamp_key is not None and not split_keys(self.stamp_key):
            raise ValueError("stamp_key has no key in it, and nothing would be signed")
        for pattern in self.redact_patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"redact_patterns has no regular expression in {pattern!r}: {error}") from error


def read_options(*, folder: Path | None = None, **given: object) -> Options:
    """The options of this process: what is given (and not None) over the environment, the environment over the file.

    Raises UsageError for a key that does not exist or a value that cannot be, naming the place where it stands.
    """
    keys, place = read_file(folder or Path.cwd())
    table: object = keys.get(RECORDER, {})
    if not isinstance(table, dict):
        raise UsageError(f"{RECORDER} in {place} is no table", remedy=f"write [{RECORDER}], and keys below it")
    found = dict(cast("dict[str, Any]", table))
    places = dict.fromkeys(found, place)
    for name in Options.__struct_fields__:
        if told := _read_environment(name):
            found[name], places[name] = told
        if given.get(name) is not None:
            found[name], places[name] = given[name], _CALL
    _read_key(found, places)
    for name in found.keys() | given.keys():
        if name not in Options.__struct_fields__:
            raise UsageError(
                f"{places.get(name, _CALL)} has a key that does not exist: {name}",
                remedy=f"the keys are {', '.join(sorted(Options.__struct_fields__))}",
            )
    return _convert({name: _parse(name, value) for name, value in found.items()}, places)


_held: Options | None = None


def configured() -> Options:
    """The options that stamps and events in transactions go by: those that were held here, else the settings'.

    Never raises, since the application's own write would: of what cannot be read the log tells, and the defaults hold.
    """
    held = _held
    if held is None:
        try:
            held = read_options()
        except Exception as error:
            log.error("%s; until then stamps are made with default options, and are not signed", error)
            held = Options()
        hold(held)
    return held


def hold(options: Options | None) -> None:
    """Have these options be what ``configured`` says; with None the settings are read again."""
    global _held  # noqa: PLW0603 - the process's own
    _held = options


class _KeyFile:
    """A mounted secret, which somebody may change under us."""

    def __init__(self, path: str, key: str | None) -> None:
        self._path, self._key, self._until = path, key, 0.0

    def read(self) -> str | None:
        """What it says by now; while it says nothing, what it said before."""
        if (now := time.monotonic()) >= self._until:
            self._until = now + KEY_SECONDS
            try:
                key = read_secret(self._path, "stamp_key_file")
            except UsageError as error:
                log.warning("%s; what it said before is signed with", error)
            else:
                self._key = key if split_keys(key) else self._key
        return self._key


_key_files: dict[str, _KeyFile] = {}
# A key in a mounted file is taken up so soon after it was changed.
KEY_SECONDS = 10.0


def signing_key(options: Options) -> str | None:
    """The key that signs now: where it stands in a mounted file, what that says by now."""
    path = options.stamp_key_file
    if path is None:
        return options.stamp_key
    found = _key_files.get(path)
    if found is None:
        found = _key_files[path] = _KeyFile(path, options.stamp_key)
    return found.read()


def service_name(options: Options) -> str:
    """The name under which events stand in the store: the given one, or the program's."""
    return options.service or Path(sys.argv[0]).stem or "application"


def find_folder(options: Options) -> Path:
    """Where the spool lives: the given folder, or one of this user's that outlives the process.

    That is below XDG_STATE_HOME or ~/.local/state, and where there is no home, below the system's temporary folder.
    """
    if options.spool_dir:
        return Path(options.spool_dir)
    state = os.environ.get("XDG_STATE_HOME")
    if state and os.path.isabs(state):
        return Path(state) / "afterwrite" / "spool"
    home = Path(os.path.expanduser("~"))
    if home.is_absolute() and home.is_dir() and os.access(home, os.W_OK):
        return home / ".local" / "state" / "afterwrite" / "spool"
    return _private(Path(tempfile.gettempdir()) / f"afterwrite-spool-{os.getuid()}")


def _private(folder: Path) -> Path:
    """This folder, made where it is not there; where somebody else made it before us, one that nobody can know."""
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022:
            return folder
        other = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    except OSError:  # nothing can be made there at all, which the spool finds out, too
        return folder
    log.warning("%s is not this user's alone: the spool is in %s; set spool_dir", folder, other)
    return other


def _read_key(found: dict[str, Any], places: dict[str, str]) -> None:
    """The key from its file, where that is named and no key is said in the same place, or one that stands over it."""
    path = found.get("stamp_key_file")
    if not isinstance(path, str):
        return
    told, named = places.get("stamp_key"), places["stamp_key_file"]
    if told in {None, f"{PREFIX}STAMP_KEY_FILE"} or _rank(told) < _rank(named):
        found["stamp_key"], places["stamp_key"] = read_secret(path, places["stamp_key_file"]), places["stamp_key_file"]
    else:
        del found["stamp_key_file"]


def _rank(place: str | None) -> int:
    """Which places hold over which: the call over the environment, that over the file."""
    return 2 if place == _CALL else 1 if place is not None and place.startswith(PREFIX) else 0


def _read_environment(name: str) -> tuple[str, str] | None:
    variable = f"{PREFIX}{name.upper()}"
    if value := os.environ.get(variable):
        return value, variable
    if name in _SECRETS and (secret := os.environ.get(f"{variable}_FILE")):
        return read_secret(secret, f"{variable}_FILE"), f"{variable}_FILE"
    return None


def _parse(name: str, value: object) -> object:
    if name in _SIZES:
        return parse_size(value)
    if name == "redact_patterns" and isinstance(value, str):
        return (value,)  # a comma is part of many a pattern
    return parse_words(value) if name in _LISTS else value


def _convert(found: Mapping[str, object], places: Mapping[str, str]) -> Options:
    try:
        return msgspec.convert(found, Options, strict=False)
    except msgspec.ValidationError as error:
        words = str(error)
        name = next(
            (name for name in sorted(found, key=len, reverse=True) if f"$.{name}" in words or name in words), ""
        )
        said = re.sub(r" - at `\$.*`$", "", words)
        where = f"{name} in {places[name]}" if name else "the recorder's settings"
        raise UsageError(f"{where} cannot be: {said[0].lower()}{said[1:]}", remedy="mend that value") from error
