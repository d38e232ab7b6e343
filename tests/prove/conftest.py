"""What several tests of proof start from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from proof_scene import Scene  # type: ignore[import-not-found]

# The stage on which silent times are filled is that of the deferral's tests.
sys.path.append(str(Path(__file__).parent.parent / "defer"))


@pytest.fixture
def scene(installed_dsn: str) -> Scene:
    return Scene(installed_dsn)
