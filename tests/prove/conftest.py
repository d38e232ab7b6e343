"""What several tests of proof start from."""

from __future__ import annotations

import pytest
from proof_scene import Scene  # type: ignore[import-not-found]


@pytest.fixture
def scene(installed_dsn: str) -> Scene:
    return Scene(installed_dsn)
