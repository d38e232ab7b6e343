"""What a request says of itself, for every web framework alike: pure, but for the activity that may be made of one.

::

    peer, X-Forwarded-For ──▶ Proxies.client ──▶ ip            headers ──▶ read_request ──▶ Told ──▶ context
                                                               actor(…), tenant(…) ──▶ Asking ──┘ when it is wanted

Every header is written by somebody whom nobody knows. An address is believed from right to left, as far as the trusted
proxies that wrote it; ids are taken where they look like ids; everything has a longest length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast
from uuid import UUID, uuid4

from afterwrite import activity
from afterwrite.context import Binding, as_user, bind, complain
from afterwrite.errors import UsageError
from afterwrite.record import Category, Level
from afterwrite.recorder.track import Tracked

Address = IPv4Address | IPv6Address
ProxyHeader = Literal["x-forwarded-for", "forwarded"]
# Which requests become an activity of their own.
Recorded = Literal["writing", "all"] | None
Request = TypeVar("Request")

REQUEST_ID, TRACE_PARENT, USER_AGENT = "x-request-id", "traceparent", "user-agent"
# Hops that are looked at, from the right; characters of their header that are.
MOST_HOPS, LONGEST_HOPS = 32, 8_192
LONGEST_AGENT = 512
_LONGEST_ADDRESS = 100
LONGEST_PATH = 500

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_TRACE_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[\x21-\x7e]*)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
# RFC 7239's for=, in an element; quoted where the node has colons.
_FOR = re.compile(r"""(?:^|;)[ \t]*for[ \t]*=[ \t]*(?:"([^"\\]*)"|([^\s";,]+))[ \t]*(?=;|$)""", re.IGNORECASE)
_READING = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


class Proxies:
    """Which networks write ``header`` as they should: each adds, at its right, the address that it was called from.

    ``trusted`` are networks or addresses; ``unix`` is whoever calls through a Unix socket. Only this one header is
    read: a proxy that writes one lets others through as its callers wrote them. Raises UsageError for no network.
    """

    def __init__(self, trusted: Iterable[str] = (), header: ProxyHeader = "x-forwarded-for") -> None:
        self.header = header.lower()
        if self.header not in {"x-forwarded-for", "forwarded"}:
            raise UsageError(f"{header!r} is no header of proxies", remedy="name x-forwarded-for or forwarded")
        words = (trusted,) if isinstance(trusted, str) else tuple(trusted)
        self._unix = "unix" in words
        self._networks: list[IPv4Network | IPv6Network] = []
        for word in words:
            if word == "unix":
                continue
            try:
                self._networks.append(ip_network(word, strict=False))
            except ValueError as error:
                raise UsageError(
                    f"{word!r} is no network whose proxies can be trusted: {error}",
                    remedy='name networks and addresses, such as "10.0.0.0/8", or "unix" for a Unix socket',
                ) from None

    def client(self, peer: str | None, values: Sequence[str]) -> str | None:
        """The address that a request came from: the first from the right that is none of our proxies'.

        ``peer`` is the other end of the connection, None or empty for a Unix socket; ``values`` are the header's, in
        their order.
        """
        address = read_address(peer) if peer else None
        if not (self._unix if not peer else address is not None and self._trusts(address)):
            return None if address is None else str(address)
        for hop in _from_the_right(values):
            said = read_address(hop) if self.header == "x-forwarded-for" else _read_node(hop)
            if said is None:  # unknown, hidden or nonsense: who came before it cannot be told
                break
            address = said
            if not self._trusts(said):
                break
        return None if address is None else str(address)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def read_address(text: str) -> Address | None:
    """An address as proxies write them, with or without port, brackets and zone."""
    return _read_kept(text) if len(text) <= _LONGEST_ADDRESS else None


@lru_cache(maxsize=2_000)
def _read_kept(text: str) -> Address | None:
    # Kept, since the same few come again and again, and ipaddress takes its time.
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _read_node(element: str) -> Address | None:
    found = _FOR.findall(element)
    return read_address(found[0][0] or found[0][1]) if len(found) == 1 else None


def _from_the_right(values: Sequence[str]) -> list[str]:
    text = ",".join(values)
    # What a cut may have left half is not looked at.
    cut = len(text) > LONGEST_HOPS
    parts = text[-LONGEST_HOPS:].split(",")[1 if cut else 0 :]
    return [hop for part in reversed(parts[-MOST_HOPS:]) if (hop := part.strip())]


def read_trace(values: Sequence[str]) -> str | None:
    """The trace id of a W3C traceparent; None where there is not exactly one, and a right one."""
    match = _TRACE_PARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    if match is None:
        return None
    version, trace, span, more = match.groups()
    odd = version == "ff" or (version == "00" and more) or not trace.strip("0") or not span.strip("0")
    return None if odd else trace


class Told(NamedTuple):
    """What a request says of itself."""

    request: str
    trace: str | None
    ip: str | None
    user_agent: str | None

    def bind(self) -> Binding:
        return bind(**self._asdict())


def read_request(get: Callable[[str], Sequence[str]], peer: str | None, proxies: Proxies) -> Told:
    """Read a request; ``get`` gives the values of a header, by its lower-case name."""
    ids = get(REQUEST_ID)
    id = ids[0].strip() if len(ids) == 1 else ""
    agents = get(USER_AGENT)
    return Told(
        request=id if _REQUEST_ID.fullmatch(id) else uuid4().hex,
        trace=read_trace(get(TRACE_PARENT)),
        ip=proxies.client(peer, get(proxies.header)),
        user_agent=_CONTROL.sub(" ", agents[0][:LONGEST_AGENT]).strip() or None if agents else None,
    )


def environ_header(environ: Mapping[str, Any], name: str) -> list[str]:
    """The values of a header in a WSGI environment, whose texts are bytes in the clothes of Latin-1."""
    value = environ.get(f"HTTP_{name.upper().replace('-', '_')}")
    return [] if value is None else [decode(str(value).encode("latin-1", "replace"))]


def decode(value: bytes) -> str:
    """A header as text: UTF-8 where it is, else Latin-1, as HTTP/1.1 had it."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class Asking(Generic[Request]):
    """Asks an application who makes a request, by its own functions, each until it has answered.

    Those of ``changing`` words are asked on: a user signs in, or out.
    """

    def __init__(
        self,
        request: Request,
        asked: Mapping[str, Callable[[Request], object] | None],
        changing: Collection[str] = (),
    ) -> None:
        self._request = request
        self._open = {word: ask for word, ask in asked.items() if ask is not None}
        self._changing = changing
        self._answers: dict[str, Any] = {}
        self.found: Binding | None = None

    def __call__(self) -> Binding | None:
        for word, ask in tuple(self._open.items()):
            try:
                answer = ask(self._request)
            except Exception as error:
                complain(error)
                continue
            if word == "actor" and not isinstance(answer, str):
                answer = name_user(answer)
            if answer == self._answers.get(word):
                continue
            self._answers[word] = answer
            self.found = bind(**self._answers)
            if word not in self._changing:
                self._open.pop(word, None)
        return self.found


def name_user(user: object) -> str | None:
    """An actor for what frameworks call the user: ``user:42``, by its ``id``, ``pk``, ``sub`` or ``identity``."""
    if user is None or getattr(user, "is_authenticated", True) is False:
        return None
    if isinstance(user, str | int | UUID):
        return as_user(user)
    for name in ("id", "pk", "sub", "identity"):
        try:
            found = cast("Mapping[str, object]", user).get(name) if isinstance(user, Mapping) else getattr(user, name)
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(found, str | int | UUID) and found != "":
            return f"user:{found}"
    return None


def track_request(record: Recorded, method: str, path: str) -> AbstractContextManager[Tracked | None]:
    """The activity of a request, where requests of this method are to have one."""
    if record is None or (record == "writing" and (method.upper() in _READING or method == "WEBSOCKET")):
        return nullcontext()
    metadata = {"method": method[:20], "path": path[:LONGEST_PATH]}
    return activity.track("http.request", category=Category.SYSTEM, metadata=metadata)


def conclude(run: Tracked | None, *, status: int | None, route: str | None, error: BaseException | None = None) -> None:
    """Say on the activity of a request what became of it.

    ``error`` is what the framework made an answer of. Where the route is known its pattern stands for the path, which
    may hold what is nobody's business.
    """
    if run is None:
        return
    if route:
        run.metadata.pop("path", None)
        run.metadata["route"] = route
    words = (run.metadata["method"], route or run.metadata.get("path"), status)
    run.summary = " ".join(str(word) for word in words if word)
    if status is not None:
        run.metadata["status"] = status
        if status >= 400:
            run.fail(error, severity=Level.ERROR if status >= 500 else Level.WARNING)
