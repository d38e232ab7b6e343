"""Triggers out of thin air."""

from __future__ import annotations

from typing import Any

from afterwrite.scan.catalog import Event, Timing, Trigger, TriggerLevel


def a_trigger(body: str = "begin return null; end", **more: Any) -> Trigger:
    """An AFTER INSERT row trigger called t on public.t, with this body; ``more`` replaces any of its fields."""
    values: dict[str, Any] = {
        "oid": 1,
        "schema": "public",
        "table": "t",
        "table_oid": 2,
        "name": "t",
        "timing": Timing.AFTER,
        "level": TriggerLevel.ROW,
        "events": (Event.INSERT,),
        "create": "",
        "function_oid": 3,
        "function_schema": "public",
        "function": "do_it",
        "language": "plpgsql",
        "source": body,
        "definition": "",
        "function_owner": "owner",
    }
    return Trigger(**{**values, **more})
