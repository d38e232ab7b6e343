"""How functions are called over values that may be NULL or unknown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from afterwrite.prove.value import OPAQUE, Holes, Unknown, Value, to_text, unknown

Function: TypeAlias = Callable[..., Value]

_STRICT: set[Function] = set()


def strict(function: Function) -> Function:
    """NULL in, NULL out; and unknown in, unknown out. The function itself sees known values only."""

    def call(*values: Value) -> Value:
        doubt: Unknown | None = None
        for value in values:
            if value is None:
                return None
            if isinstance(value, Unknown):
                doubt = doubt or value
            elif isinstance(value, Holes):
                doubt = doubt or unknown(value.why)
        return doubt or function(*values)

    _STRICT.add(call)
    return call


def strict_over_text(function: Function) -> Function:
    """A strict function whose first argument is taken as text, whatever it is."""

    def call(value: Value, *rest: Value) -> Value:
        text = to_text(value)
        return function(text, *rest) if type(text) is str else OPAQUE

    return strict(call)


def is_strict(function: Function) -> bool:
    """Whether it answers NULL as soon as one argument is NULL."""
    return function in _STRICT
