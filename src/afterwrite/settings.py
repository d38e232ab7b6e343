"""Settings at the edge: flag > environment > file, every refusal with the key's name and where it stands.

``afterwrite.toml`` in the working folder (or ``AFTERWRITE_CONFIG``, or ``[tool.afterwrite]`` of pyproject.toml),
``AFTERWRITE_*`` variables, and ``AFTERWRITE_DSN_FILE`` and the like for secrets that are mounted as files. An empty
variable counts as absent. Of variables that we do not know we say nothing: orchestrators put their own there
(Kubernetes sets ``AFTERWRITE_SERVICE_HOST`` for a service of our name).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from afterwrite.configfile import (
    PREFIX,
    RECORDER,
    is_broker,
    parse_pairs,
    parse_size,
    parse_words,
    read_file,
    read_secret,
)
from afterwrite.errors import UsageError

_SECRETS = ("dsn", "store_dsn", "stamp_key", "serve_jwt_secret", "nats_password", "nats_token", "lake_options")


# What a value has to be, where pydantic's words are not an operator's.
_WANTED = {
    "wal_budget": "it should be a size of at least 1MB, written as PostgreSQL's own are (8GB, 512MB)",
    "slot": "it should be at most 63 lower-case letters, digits and underscores",
}

_Scope = Literal["read", "ingest", "admin"]


class Settings(BaseSettings):
    """Where the databases are, and the names and limits of what we set up in them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, hide_input_in_errors=True)

    # The source database; None means PG* variables and service files.
    dsn: str | None = None
    # The store's database; None means the source.
    store_dsn: str | None = None
    # Brokers (nats://…) to which capture publishes what a writer is to store, where it cannot open the store itself.
    capture_url: str | None = None
    # The source's name in the store.
    source: Annotated[str, Field(min_length=1)] = "main"
    slot: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,63}$")] = "afterwrite"
    publication: Annotated[str, Field(min_length=1, max_length=63)] = "afterwrite"
    legacy_publication: Annotated[str, Field(min_length=1, max_length=63)] = "afterwrite_legacy"
    # How long an attempt of our DDL may make writers wait, and how often it is tried.
    lock_timeout_ms: Annotated[int, Field(gt=0, le=60_000)] = 500
    lock_attempts: Annotated[int, Field(gt=0)] = 20
    # What `plan` writes as thresholds: a phase's proof needs so many transactions over so long, its soak lasts so long,
    # and the database must have been watched so long before, to be compared with afterwards.
    proof_transactions: Annotated[int, Field(ge=0)] = 1_000
    proof_seconds: Annotated[float, Field(ge=0)] = 3_600.0
    soak_seconds: Annotated[float, Field(ge=0)] = 3_600.0
    baseline_seconds: Annotated[float, Field(ge=0)] = 60.0
    # How much slower writes, and how much dearer in CPU, may be in the soak than before.
    write_latency_ratio: Annotated[float, Field(gt=0)] = 1.5
    cpu_ratio: Annotated[float, Field(gt=0)] = 1.5
    # A batch holds whole transactions of so many rows, and waits so long for more of them unless all is quiet.
    batch_rows: Annotated[int, Field(gt=0, le=100_000)] = 5_000
    linger_ms: Annotated[int, Field(ge=0, le=10_000)] = 40
    # A transaction that takes more memory than this waits for its commit in a temporary file, in this folder (None:
    # the system's), which must have room for as many bytes as the server sends of it.
    transaction_bytes: Annotated[int, Field(ge=1 << 16)] = 16 << 20
    spill_dir: pydantic.DirectoryPath | None = None
    # The store's days: searchable by everything for so long, made so far ahead, dropped when so old (None: never), and
    # how often the worker looks after them.
    hot_days: Annotated[int, Field(ge=1, le=36_500)] = 30
    ahead_days: Annotated[int, Field(ge=1, le=92)] = 7
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    maintain_seconds: Annotated[float, Field(ge=1)] = 600.0
    # Where days go that leave the store: a folder, s3://, az:// or gs://, and what its object store is opened with, a
    # table in the file, or NAME=VALUE with commas or line's ends between them. How many full days before today stay,
    # and for how long files are kept that newer versions of the table have no more.
    lake_url: str | None = None
    lake_options: Annotated[dict[str, str], BeforeValidator(parse_pairs)] = {}
    lake_after_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    lake_vacuum_hours: Annotated[int, Field(ge=1)] = 168
    # By what the lake is searched: in this process, or on many machines through this master ("spark://HOST:PORT").
    lake_engine: Literal["duckdb", "spark"] = "duckdb"
    lake_spark_master: Annotated[str, Field(min_length=1)] = "local[*]"
    # How much WAL the slot may keep on the source's disk ("8GB", in PostgreSQL's units), from which share of it on that
    # is told, and whether the slot is given up at the end of it. How far behind the store may be before that is told.
    wal_budget: Annotated[int, BeforeValidator(parse_size), Field(ge=1 << 20)] = 8 << 30
    wal_warn_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    wal_alarm_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    over_budget: Literal["alarm", "give-up"] = "alarm"
    lag_warn_seconds: Annotated[float, Field(gt=0)] = 60.0
    # Which of the settings that a transaction stamped its deferred bodies find again, as patterns ("myapp.*").
    # Whether bodies that are to be deferred are tried out while their triggers are still on.
    rehearse: bool = True
    deferred_settings: Annotated[tuple[str, ...], BeforeValidator(parse_words)] = ("request.*", "app.*")
    # What applications sign their stamps and events with ("new,old" while it is changed): others are marked.
    stamp_key: Annotated[str, Field(min_length=8)] | None = None
    # Who acts, for the ledger; None means the operating system's user.
    operator: str | None = None
    # The brokers in front of the store, the stream that is ours there, who we are, and the files (authority,
    # certificate, its key) of a line under TLS. Where each broker's monitoring answers, for `broker check`.
    nats_url: str | None = None
    nats_stream: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,32}$")] = "AFTERWRITE"
    nats_user: str | None = None
    nats_password: str | None = None
    nats_token: str | None = None
    nats_credentials: str | None = None
    nats_nkey: str | None = None
    nats_ca: str | None = None
    nats_cert: str | None = None
    nats_key: str | None = None
    nats_monitor: Annotated[tuple[str, ...], BeforeValidator(parse_words)] = ()
    # Where `serve` listens, over how many connections it reads the store, how many may ask the lake at a time, and how
    # long a query may take.
    serve_host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    serve_port: Annotated[int, Field(ge=0, le=65_535)] = 8787
    serve_readers: Annotated[int, Field(gt=0, le=1_000)] = 8
    serve_lake_queries: Annotated[int, Field(gt=0, le=100)] = 2
    serve_statement_ms: Annotated[int, Field(gt=0)] = 10_000
    # Whether callers must say who they are: "auto" asks everywhere but on loopback, "off" is refused elsewhere.
    serve_auth: Literal["auto", "required", "off"] = "auto"
    # How many requests a minute a caller may make (0: any number), and how long what is handed in may be.
    serve_rate: Annotated[int, Field(ge=0)] = 6_000
    serve_body_bytes: Annotated[int, BeforeValidator(parse_size), Field(ge=1 << 10)] = 16 << 20
    # For how long looking at the same thing again is one record of who looked at what.
    serve_access_seconds: Annotated[float, Field(ge=1)] = 300.0
    # Web pages of other origins that may call the API ("https://admin.example.com").
    serve_cors_origins: Annotated[tuple[str, ...], BeforeValidator(parse_words)] = ()
    # Tokens that somebody else signs: where his keys are (of Supabase the project's URL is enough), and what stands in
    # one. Claims inside others are named with dots.
    serve_jwks_url: str | None = None
    serve_jwt_secret: Annotated[str, Field(min_length=32)] | None = None
    serve_jwt_issuer: str | None = None
    serve_jwt_audience: str | None = None
    serve_jwt_algorithms: Annotated[tuple[str, ...], BeforeValidator(parse_words)] = ()
    serve_jwt_actor_claim: Annotated[str, Field(min_length=1)] = "sub"
    serve_jwt_tenant_claim: str | None = None
    serve_jwt_scopes_claim: str | None = None
    # What a token may do that has no scopes of its own, and whether one without a tenant sees every tenant.
    serve_jwt_scopes: Annotated[tuple[_Scope, ...], BeforeValidator(parse_words)] = ()
    serve_jwt_tenant: Literal["required", "optional"] = "required"
    # The header in which a proxy says who asks, what such callers may do, the header with their tenant, and from which
    # addresses ("10.0.0.0/8") that, and X-Forwarded-For, is believed.
    serve_trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(parse_words)] = ()
    serve_proxy_header: str | None = None
    serve_proxy_scopes: Annotated[tuple[_Scope, ...], BeforeValidator(parse_words)] = ("read",)
    serve_proxy_tenant_header: str | None = None

    @pydantic.field_validator("wal_alarm_share")
    @classmethod
    def _alarm_after_warning(cls, share: float, told: pydantic.ValidationInfo) -> float:
        if share < told.data.get("wal_warn_share", 0):
            raise ValueError("it should not be less than wal_warn_share")
        return share

    @pydantic.field_validator("lake_url")
    @classmethod
    def _leave_by_the_lake(cls, url: str | None, told: pydantic.ValidationInfo) -> str | None:
        if url is not None and told.data.get("retention_days") is not None:
            # Retention would drop days that the lake has not got yet.
            raise ValueError("it should not be set beside retention_days: days leave by `afterwrite lake archive`")
        return url

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The environment and the file are read by load_settings, which can say in words what is wrong with them.
        return (init_settings,)

    @pydantic.field_validator("store_dsn")
    @classmethod
    def _store_is_a_database(cls, dsn: str | None) -> str | None:
        if dsn is not None and is_broker(dsn):
            raise ValueError("it should be a database; the brokers that capture publishes to are capture_url")
        return dsn

    @pydantic.field_validator("capture_url")
    @classmethod
    def _publish_to_brokers(cls, url: str | None) -> str | None:
        if url is not None and not is_broker(url):
            raise ValueError("it should be a broker's address, nats://… or tls://…")
        return url

    @property
    def store(self) -> str | None:
        """The DSN of the store's database. Raises UsageError where only brokers before it are named."""
        self._want_store()
        return self.store_dsn if self.store_dsn is not None else self.dsn

    @property
    def one_database(self) -> bool:
        """Whether the store lives in the source database. Raises UsageError where only brokers before it are named."""
        self._want_store()
        return self.store_dsn is None or self.store_dsn == self.dsn

    def _want_store(self) -> None:
        # Without this the source database would be taken for the store.
        if self.capture_url is not None and self.store_dsn is None:
            raise UsageError(
                "this needs the store, and the settings name only brokers before it (capture_url)",
                remedy="run it where the store can be reached, and name it: --store-dsn",
            )


def load_settings(*, folder: Path | None = None, **flags: object) -> Settings:
    """The settings of this run; flags that are None count as not given.

    Raises UsageError for a key that does not exist or a value that cannot be, naming the place where it stands.
    """
    found, place = read_file(folder or Path.cwd())
    found.pop(RECORDER, None)
    places = dict.fromkeys(found, place)
    for name in Settings.model_fields:
        if told := _read_environment(name):
            found[name], places[name] = told
    for name, value in flags.items():
        if value is not None:
            found[name], places[name] = value, f"--{name.replace('_', '-')}"
    try:
        return Settings(**found)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        where = places.get(name.split(".", maxsplit=1)[0], "the settings")
        if first["type"] == "extra_forbidden":
            raise UsageError(
                f"{where} has a key that does not exist: {name}",
                remedy=f"the keys are {', '.join(sorted(Settings.model_fields))}",
            ) from error
        said = _WANTED.get(name, _begin_small(first["msg"].removeprefix("Value error, ")))
        raise UsageError(f"{name} in {where} cannot be: {said}", remedy="mend that value") from error


def _begin_small(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _read_environment(name: str) -> tuple[str, str] | None:
    """What the environment says of this setting, and which variable says it."""
    variable = f"{PREFIX}{name.upper()}"
    if value := os.environ.get(variable):
        return value, variable
    if name in _SECRETS and (secret := os.environ.get(f"{variable}_FILE")):
        return read_secret(secret, f"{variable}_FILE"), f"{variable}_FILE"
    if name == "dsn" and (url := os.environ.get("DATABASE_URL")):
        # Applications write their driver's name into it (postgresql+psycopg://…), which libpq does not know.
        return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", url), "DATABASE_URL"
    return None
