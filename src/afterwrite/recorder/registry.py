"""What an application says of its activities beforehand: actions, categories of its own, what metadata must hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from enum import Enum
from typing import Any, TypedDict, cast

import msgspec

from afterwrite.errors import UsageError
from afterwrite.record import Category, Level

ACTION = re.compile(r"[a-z0-9_]+(?:\.[a-z0-9_]+)*")
CATEGORY = re.compile(r"[a-z][a-z0-9_]*")

Schema = type | Mapping[str, Any]


class Action(msgspec.Struct, frozen=True):
    """An action with what all of its activities share.

    ``category``, ``severity`` and ``summary`` hold where a call does not say otherwise. ``metadata`` is what each one's
    metadata must fit: a msgspec Struct, a TypedDict, a dataclass, or a mapping of names to types. Members that the type
    does not know are allowed, unless a Struct forbids them.
    """

    name: str
    category: str | None = None
    severity: Level | None = None
    summary: str | None = None
    metadata: Schema | None = None

    def __post_init__(self) -> None:
        if not ACTION.fullmatch(self.name):
            raise UsageError(f"{self.name!r} is no action", remedy="write it as user.create: lower-case words and dots")
        if self.category is not None and not CATEGORY.fullmatch(self.category):
            raise UsageError(f"{self.category!r} is no category", remedy="write it as user_management")

    def __str__(self) -> str:
        return self.name


class Registry:
    """The actions and categories of one application. Registering again replaces: the last word holds."""

    def __init__(self) -> None:
        self._actions: dict[str, Action] = {}
        self._categories: set[str] = {category.value for category in Category}
        self._types: dict[str, Any] = {}

    def register(self, *known: Action | type[Enum]) -> None:
        """Make these known: actions, and categories as the values of an Enum.

        Raises UsageError for a schema that metadata cannot be held against, and for a category that is none.
        """
        for each in known:
            if isinstance(each, Action):
                schema = _schema_type(each)
                self._actions[each.name] = each
                if schema is None:
                    self._types.pop(each.name, None)
                else:
                    self._types[each.name] = schema
                if each.category is not None:
                    self._categories.add(str(each.category))
            else:
                words = [str(member.value) for member in each]
                for word in words:
                    if not CATEGORY.fullmatch(word):
                        raise UsageError(f"{word!r} is no category", remedy="write it as user_management")
                self._categories.update(words)

    def __contains__(self, name: object) -> bool:
        return name in self._actions

    def find(self, name: object) -> Action | None:
        """What was registered under this name."""
        return self._actions.get(name) if isinstance(name, str) else None

    def misfit(self, name: str, metadata: object) -> str | None:
        """What of this metadata does not fit the schema of its action, in words; None where all does."""
        schema = self._types.get(name)
        if schema is None:
            return None
        try:
            msgspec.convert({} if metadata is None else metadata, schema, from_attributes=True)
        except msgspec.ValidationError as error:
            said = str(error)
            return said[0].lower() + said[1:]
        except Exception as error:
            # A property that raises, a mapping that somebody changes meanwhile.
            return f"it cannot be read: {type(error).__name__}"
        return None

    def refuse_unknown(self, category: str) -> None:
        """Raises UsageError for a category that nobody made known, naming the nearest one."""
        if category in self._categories:
            return
        near = get_close_matches(category, sorted(self._categories), n=1)
        raise UsageError(
            f"{str.__str__(category)!r} is no category that is known" + (f"; {near[0]!r} is" if near else ""),
            remedy="activity.register an Action that has it, or an Enum of your categories",
        )


def _schema_type(action: Action) -> Any:
    """The type that this action's metadata is held against; raises UsageError for one that msgspec does not know."""
    schema = action.metadata
    if schema is None:
        return None
    try:
        if isinstance(schema, Mapping):
            members = dict(schema)
            schema = cast("Any", TypedDict)("Metadata", members)
        msgspec.json.Decoder(cast("Any", schema))
    except (TypeError, NameError) as error:
        raise UsageError(
            f"metadata of {action.name} cannot be held against {action.metadata!r}: {error}",
            remedy="give a msgspec Struct, a TypedDict, a dataclass, or a mapping of names to types",
        ) from error
    return schema
