"""An answer that costs much and is asked for often: read once, kept for some seconds, by whoever asks meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """Reads when it is asked and what it has is older than ``seconds``. Who asks while it reads waits for that answer.

    A reading that fails is told to those who waited for it, and is not kept.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], seconds: float) -> None:
        self._read = read
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._answer: T | None = None
        self._until = 0.0

    def forget(self) -> None:
        """Read anew when it is asked next: something was changed."""
        self._until = 0.0

    async def get(self) -> T:
        """The answer, at most ``seconds`` old."""
        async with self._turn:
            if self._answer is None or time.monotonic() >= self._until:
                self._answer = await self._read()
                self._until = time.monotonic() + self._seconds
            return self._answer
