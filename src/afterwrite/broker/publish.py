"""The recorder's sink that is a broker: what is published counts as taken when the broker has acknowledged it.

Of events that are to be stored (``durability="stored"``) it counts when a writer says that the store has it: then the
spool covers a broker that loses what it acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from afterwrite.broker.bundle import MESSAGE_ID, RECEIPT, Bundle, bundle, name_for_receipt
from afterwrite.broker.link import Access, Link, connect
from afterwrite.broker.topology import subject_of
from afterwrite.errors import ConnectionLost
from afterwrite.failpoints import failpoint
from afterwrite.record import Batch, Receipt
from afterwrite.recorder.deliver import NotTaken, OpenSink

_ACK_SECONDS = 10.0
RECEIPT_SECONDS = 30.0


def broker_sink(access: Access) -> OpenSink:
    """What opens a sink that publishes into the broker's stream."""

    @asynccontextmanager
    async def open_sink() -> AsyncGenerator[BrokerSink]:
        async with connect(access, name="afterwrite recorder") as link:
            yield BrokerSink(link, access)

    def opened() -> AbstractAsyncContextManager[BrokerSink]:
        return open_sink()

    return opened


class BrokerSink:
    """Publishes batches over one connection, each activity to the lane that its tenant has."""

    def __init__(self, link: Link, access: Access) -> None:
        self._link = link
        self._access = access
        self._inbox = ""
        self._sent = 0
        self._waited_for: dict[str, asyncio.Future[None]] = {}

    async def write(self, batch: Batch) -> Receipt:
        """Publish the batch, and wait until the broker, or the store, has all of it. Raises NotTaken for what is too
        long."""
        rounds, refused = bundle(batch.activities, longest=self._link.max_payload)
        for bundles in rounds:
            failpoint("broker.before_publish")
            await self._publish(bundles)
            failpoint("broker.after_publish")
        if refused:
            raise NotTaken(refused)
        return Receipt(batch_id=None, position=None, stored=len(batch.activities))

    async def _publish(self, bundles: Sequence[Bundle]) -> None:
        waited: list[asyncio.Future[Any]] = []
        receipts: list[asyncio.Future[Any]] = []
        try:
            for each in bundles:
                headers = {MESSAGE_ID: each.id}
                if each.receipt:
                    id = await self._new_name(each)
                    headers = {MESSAGE_ID: id, RECEIPT: self._inbox}
                    receipt = self._waited_for[id] = asyncio.get_running_loop().create_future()
                    receipts.append(receipt)
                waited.append(await self._link.publish(subject_of(self._access.stream, each.lane), each.body, headers))
            await self._all(waited, _ACK_SECONDS, "acknowledged by the broker")
            if receipts:
                await self._all(receipts, RECEIPT_SECONDS, "stored by a writer")
        finally:
            for future in (*waited, *receipts):
                if not future.done():
                    future.cancel()
            self._waited_for.clear()

    async def _new_name(self, bundle: Bundle) -> str:
        """A name that this message never had: the broker may know one again that it has lost."""
        if not self._inbox:
            self._inbox = self._link.new_inbox()
            await self._link.hear(self._inbox, self._hear_receipt)
        self._sent += 1
        return name_for_receipt(bundle.id, f"{self._inbox.rpartition('.')[2]}{self._sent}")

    async def _all(self, waited: Sequence[asyncio.Future[Any]], seconds: float, done: str) -> None:
        """Wait for all of these, or until the line is lost."""
        lost = asyncio.ensure_future(self._link.lost.wait())
        together = asyncio.ensure_future(asyncio.gather(*waited))
        try:
            await asyncio.wait((lost, together), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if together.done():
                await together
                return
            if lost.done():
                raise ConnectionLost(f"the line to {self._access.where} was lost", remedy="what waits is sent again")
            self._link.need_rights()
            left = sum(not future.done() for future in waited)
            raise ConnectionLost(
                f"{left} of {len(waited)} messages were not {done} in {seconds:g} s",
                remedy="run `afterwrite broker check`; what waits is sent again",
            )
        finally:
            lost.cancel()
            together.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await together

    async def _hear_receipt(self, message: Any) -> None:
        for id in bytes(message.data).decode().splitlines():
            future = self._waited_for.get(id)
            if future is not None and not future.done():
                future.set_result(None)
