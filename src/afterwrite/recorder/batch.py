"""Many things at once, as one activity: how many there were, how many succeeded, and what became of the others."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgspec

from afterwrite.record import Category, Level, Outcome
from afterwrite.recorder.encode import clean_text
from afterwrite.recorder.track import Scribe, Spec, Tracked, at_least, describe_error

log = logging.getLogger(__name__)

_SAMPLES = 20
_LONGEST_KEY = 200
_TELL_SECONDS = 1.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is."""

    total: int | None
    succeeded: int
    failed: int
    skipped: int
    seconds: float

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.skipped

    @property
    def share(self) -> float | None:
        """How much of it is done, from 0 to 1; None where the total is not known."""
        return None if not self.total else min(1.0, self.done / self.total)

    @property
    def rate(self) -> float:
        """Items a second."""
        return self.done / self.seconds if self.seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """How long it will take at this rate; None where that cannot be known."""
        if self.total is None or not self.done:
            return None
        return max(0, self.total - self.done) * self.seconds / self.done


class Batch(Tracked):
    """One run of a batch: count its items on it, from any thread."""

    __slots__ = (
        "_counting", "_failed", "_kinds", "_on_progress", "_progress_seconds", "_samples", "_skipped", "_succeeded",
        "_told_at", "total",
    )  # fmt: skip

    def __init__(
        self,
        scribe: Scribe,
        spec: Spec,
        *,
        odd: str | None = None,
        total: int | None = None,
        on_progress: Callable[[Progress], object] | None = None,
        progress_seconds: float | None = None,
    ) -> None:
        super().__init__(scribe, spec, odd=odd)
        # How many there are to be; may be set when it is known.
        self.total = total
        self._counting = threading.Lock()
        self._succeeded = self._failed = self._skipped = 0
        self._samples: list[dict[str, Any]] = []
        self._kinds: Counter[str] = Counter()
        self._on_progress = on_progress
        self._progress_seconds = progress_seconds
        self._told_at = time.perf_counter()

    def succeeded(self, count: int = 1) -> None:
        """Count items that went well."""
        with self._counting:
            self._succeeded += count
        self._tell()

    def failed(self, key: object = None, error: BaseException | str | None = None, *, count: int = 1) -> None:
        """Count an item that did not; the first of them are told by key and error, and all by the error's type."""
        told = describe_error(error) if isinstance(error, BaseException) else {"message": clean_text(error, 500)}
        with self._counting:
            self._failed += count
            if error is not None and (len(self._kinds) < _SAMPLES or told.get("type") in self._kinds):
                self._kinds[told.get("type", "error")] += count
            if len(self._samples) < _SAMPLES:
                named = {} if key is None else {"key": key if isinstance(key, int) else clean_text(key, _LONGEST_KEY)}
                self._samples.append({**named, **({} if error is None else {"error": told})})
        self._tell()

    def skipped(self, count: int = 1) -> None:
        """Count items that there was nothing to do for."""
        with self._counting:
            self._skipped += count
        self._tell()

    def item(self, key: object = None, *, go_on: bool = False) -> Item:
        """One item as a block, counted as it ends; with ``go_on`` an error is counted, and not raised on."""
        return Item(self, key, go_on=go_on)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        with self._counting:
            return Progress(
                total=self.total,
                succeeded=self._succeeded,
                failed=self._failed,
                skipped=self._skipped,
                seconds=self.seconds,
            )

    def describe(self, error: BaseException | None) -> None:
        progress = self.progress
        if error is None and self.outcome == Outcome.SUCCESS and progress.failed:
            # Some of many is a success that somebody should look at.
            if progress.succeeded or progress.skipped:
                self.severity = at_least(self.severity, Level.WARNING)
            else:
                self.outcome = Outcome.FAILURE
        super().describe(error)
        self.metadata |= _counts(progress)
        if self._samples:
            self.metadata["failures"] = self._samples
        if self._kinds:
            self.metadata["failures_by_type"] = dict(self._kinds)

    def _tell(self) -> None:
        """Say how far it is, where somebody wants to know and has not heard for a while."""
        if self._on_progress is None and self._progress_seconds is None:
            return
        now = time.perf_counter()
        with self._counting:
            if now - self._told_at < (self._progress_seconds or _TELL_SECONDS):
                return
            self._told_at = now
        progress = self.progress
        if self._on_progress is not None:
            try:
                self._on_progress(progress)
            except Exception:
                if self._scribe.strict:
                    raise
                log.warning("on_progress of a batch raised", exc_info=True)
        if self._progress_seconds is not None:
            self.record_progress(_counts(progress))


class Item:
    """One item of a batch, as a block."""

    __slots__ = ("_batch", "_go_on", "_key")

    def __init__(self, batch: Batch, key: object, *, go_on: bool) -> None:
        self._batch = batch
        self._key = key
        self._go_on = go_on

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._batch.succeeded()
            return False
        self._batch.failed(self._key, error)
        return self._go_on and isinstance(error, Exception)

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return self.__exit__(kind, error, trace)


def batch_spec(spec: Spec) -> Spec:
    """The spec of a batch: its category is ``bulk`` where none is said."""
    return spec if spec.category is not None else msgspec.structs.replace(spec, category=Category.BULK)


def _counts(progress: Progress) -> dict[str, Any]:
    known: dict[str, Any] = {} if progress.total is None else {"total": progress.total}
    return {
        **known,
        "succeeded": progress.succeeded,
        "failed": progress.failed,
        "skipped": progress.skipped,
        "items_per_second": round(progress.rate, 1),
    }
