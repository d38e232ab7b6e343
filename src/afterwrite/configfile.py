"""The file that settings are read from, and the sizes and secrets in it: for commands and for applications alike.

``afterwrite.toml`` in the working folder (or ``AFTERWRITE_CONFIG``, or ``[tool.afterwrite]`` of pyproject.toml). The
table ``[recorder]`` is the recorder's, and everything above it the commands'.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, cast

from afterwrite.errors import UsageError

PREFIX = "AFTERWRITE_"
RECORDER = "recorder"
_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}


def read_file(folder: Path) -> tuple[dict[str, Any], str]:
    """The keys of the file that holds here, and its name for messages; none at all where there is no file."""
    named = os.environ.get(f"{PREFIX}CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise UsageError(f"there is no file {path}, which AFTERWRITE_CONFIG names", remedy="mend the variable")
        return _parse(path), str(path)
    own = folder / "afterwrite.toml"
    if own.is_file():
        return _parse(own), "afterwrite.toml"
    project = folder / "pyproject.toml"
    if project.is_file():
        return _parse(project), "[tool.afterwrite] in pyproject.toml"
    return {}, ""


def read_secret(path: str, variable: str) -> str:
    """What a mounted file says; raises UsageError naming the variable."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{variable} names a file that cannot be read: {path}", remedy="mend the variable") from error


def parse_size(value: object) -> object:
    """Bytes from words as PostgreSQL's own settings have them (``8GB`` is 8 × 1024³); ``8GiB`` is the same."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", value) if isinstance(value, str) else None
    if match is None:
        return value
    unit = _UNITS.get(match[2].lower().replace("ib", "b"))
    return value if unit is None else int(float(match[1]) * unit)


def is_broker(url: str) -> bool:
    """Whether this address is a broker's."""
    return url.startswith(("nats://", "tls://"))


def parse_words(value: object) -> object:
    """A list from the file, or words with commas between them from the environment."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


def parse_pairs(value: object) -> object:
    """A table from the file, or ``NAME=VALUE`` with line's ends between them, or commas, from the environment."""
    if not isinstance(value, str):
        return value
    pairs = [pair.strip() for pair in (value.splitlines() if "\n" in value else value.split(",")) if pair.strip()]
    if any("=" not in pair for pair in pairs):
        raise ValueError("it should be NAME=VALUE, with commas or line's ends between them")
    return dict(pair.split("=", 1) for pair in pairs)


def _parse(path: Path) -> dict[str, Any]:
    import tomllib

    try:
        keys: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}", remedy="mend the file") from error
    if path.name != "pyproject.toml":
        return keys
    ours: object = keys.get("tool", {}).get("afterwrite", {})
    if not isinstance(ours, dict):
        raise UsageError(f"tool.afterwrite in {path} is no table", remedy="write [tool.afterwrite], and keys below it")
    return cast("dict[str, Any]", ours)
