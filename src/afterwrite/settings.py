"""Settings at the edge: flag > environment > file, every refusal with the key's name and where it stands.

``afterwrite.toml`` in the working folder (or ``AFTERWRITE_CONFIG``, or ``[tool.afterwrite]`` of pyproject.toml),
``AFTERWRITE_*`` variables, and ``AFTERWRITE_DSN_FILE`` and the like for secrets that are mounted as files.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pydantic
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from afterwrite.errors import UsageError

_PREFIX = "AFTERWRITE_"
_SECRETS = ("dsn", "store_dsn")


class Settings(BaseSettings):
    """Where the databases are, and the names and limits of what we set up in them."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    dsn: str | None = pydantic.Field(None, description="source database; None means PG* variables and service files")
    store_dsn: str | None = pydantic.Field(None, description="the store's database; None means the source")
    source: str = pydantic.Field("main", min_length=1, description="the source's name in the store")
    slot: str = pydantic.Field("afterwrite", pattern=r"^[a-z0-9_]{1,63}$", description="the replication slot")
    publication: str = pydantic.Field("afterwrite", min_length=1, max_length=63)
    legacy_publication: str = pydantic.Field("afterwrite_legacy", min_length=1, max_length=63)
    lock_timeout_ms: int = pydantic.Field(500, gt=0, le=60_000, description="how long DDL may make writers wait")
    lock_attempts: int = pydantic.Field(20, gt=0)
    proof_transactions: int = pydantic.Field(1_000, ge=0, description="a phase's proof needs this many transactions")
    proof_seconds: float = pydantic.Field(3_600.0, ge=0, description="… over at least this time")
    soak_seconds: float = pydantic.Field(3_600.0, ge=0, description="how long a silenced phase is watched")
    operator: str | None = pydantic.Field(None, description="who acts, for the ledger; else the operating system's user")

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

    @property
    def store(self) -> str | None:
        """The DSN of the store's database."""
        return self.store_dsn if self.store_dsn is not None else self.dsn

    @property
    def one_database(self) -> bool:
        """Whether the store lives in the source database."""
        return self.store_dsn is None or self.store_dsn == self.dsn


def load_settings(*, folder: Path | None = None, **flags: object) -> Settings:
    """The settings of this run; flags that are None count as not given.

    Raises UsageError for a key that does not exist or a value that cannot be, naming the place where it stands.
    """
    named = os.environ.get(f"{_PREFIX}CONFIG")
    found, place = _read_file(Path(named) if named else None, folder or Path.cwd())
    places = dict.fromkeys(found, place)
    for name in Settings.model_fields:
        variable = f"{_PREFIX}{name.upper()}"
        value, where = os.environ.get(variable), variable
        if value is None and name in _SECRETS and (secret := os.environ.get(f"{variable}_FILE")):
            value, where = _read_secret(secret, f"{variable}_FILE"), f"{variable}_FILE"
        if value is None and name == "dsn" and os.environ.get("DATABASE_URL"):
            value, where = os.environ["DATABASE_URL"], "DATABASE_URL"
        if value is not None:
            found[name], places[name] = value, where
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
        raise UsageError(f"{name} in {where} cannot be: {first['msg'].lower()}", remedy="mend that value") from error


def _read_file(named: Path | None, folder: Path) -> tuple[dict[str, Any], str]:
    if named is not None:
        if not named.is_file():
            raise UsageError(f"there is no file {named}, which AFTERWRITE_CONFIG names", remedy="mend the variable")
        return _parse(named), str(named)
    own = folder / "afterwrite.toml"
    if own.is_file():
        return _parse(own), "afterwrite.toml"
    project = folder / "pyproject.toml"
    if project.is_file():
        return dict(_parse(project).get("tool", {}).get("afterwrite", {})), "[tool.afterwrite] in pyproject.toml"
    return {}, ""


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}", remedy="mend the file") from error


def _read_secret(path: str, variable: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{variable} names a file that cannot be read: {path}", remedy="mend the variable") from error
