"""pytest's fixture ``recorded``; what it needs is imported when a test asks for it, and not at pytest's start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from afterwrite.testing import Memory


@pytest.fixture
def recorded() -> Iterator[Memory]:
    """What the test's application records, in memory: ``recorded.assert_recorded("report.exported")``."""
    from afterwrite.testing import recording

    with recording() as memory:
        yield memory
