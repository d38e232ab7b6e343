"""Where facts are written down while a body is walked, together with the conditions that stand over them."""

from __future__ import annotations

from typing import Any, TypeVar

from afterwrite.scan.facts import Body, Fact, Guard, Term, assemble

F = TypeVar("F", bound=Fact)


class Notebook:
    """The facts found so far, and the state of the walk.

    ``rows`` are the names under which the trigger's rows go (``{"new": "new", "o": "old"}``), ``values`` what the
    variables may hold at this place, ``parameters`` the function's own.
    """

    def __init__(self, *, trigger: bool) -> None:
        self.facts: dict[type[Fact], list[Fact]] = {}
        self.guards: list[Guard] = []
        self.handler = False
        self.caught = 0
        self.caught_raises = 0
        self.caught_duplicates = 0
        self.loop = 0
        self.rows = {"new": "new", "old": "old"} if trigger else {}
        self.values: dict[str, Term] = {}
        self.parameters: frozenset[str] = frozenset()
        self._questions = 0

    def add(self, kind: type[F], line: int, **fields: Any) -> F:
        """Write down a fact of this kind, under the guards of the moment."""
        state = {
            "guards": tuple(self.guards),
            "handler": self.handler,
            "loop": self.loop > 0,
            "caught": self.caught > 0,
        }
        fact = kind(line=line, **state, **fields)
        self.facts.setdefault(kind, []).append(fact)
        return fact

    def question(self) -> str:
        """A fresh name for what a condition selects from."""
        self._questions += 1
        return f"@{self._questions}"

    def body(self, **more: Any) -> Body:
        """Everything written down, each kind of fact in the order in which it was found."""
        return assemble(self.facts, **more)
