"""A Celery worker in a thread of the test's process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

# It is not to change how this process logs.
setup_logging.connect(lambda **_: None, weak=False)


@contextmanager
def worker_of(app: Celery) -> Iterator[None]:
    """Run what is sent to this application; to end takes Celery some seconds."""
    with start_worker(app, perform_ping_check=False, shutdown_timeout=10):
        yield
