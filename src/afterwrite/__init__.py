"""afterwrite: activity logging that leaves the write path, and a way out of audit triggers that loses nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afterwrite.record import Category as Category

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # When it is first asked for: commands that need none of it start faster.
    if name == "Category":
        from afterwrite.record import Category

        return Category
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
