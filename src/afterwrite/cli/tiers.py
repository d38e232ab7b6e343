"""Which lake a command asks, and by which engine, as it is configured."""

from __future__ import annotations

from functools import partial

from afterwrite.cli.face import plain, say, talk
from afterwrite.errors import UsageError
from afterwrite.lake.duck import DuckEngine
from afterwrite.lake.read import Open
from afterwrite.lake.spark import SparkEngine
from afterwrite.lake.table import Lake
from afterwrite.settings import Settings


def lake_of(given: Settings) -> Lake:
    """The lake that is configured; raises UsageError where none is."""
    if given.lake_url is None:
        raise UsageError("no lake is configured", remedy="set lake_url (AFTERWRITE_LAKE_URL), or name one with --url")
    return Lake(given.lake_url, given.lake_options)


def engine_of(given: Settings) -> Open:
    """What the lake is asked by; a person at a terminal is told what there is to wait for."""
    match given.lake_engine:
        case "duckdb":
            return DuckEngine
        case "spark":
            return partial(SparkEngine, master=given.lake_spark_master, told=_tell)


def _tell(text: str) -> None:
    if talk.is_terminal:
        say(f"[dim]{plain(text)}[/]")
