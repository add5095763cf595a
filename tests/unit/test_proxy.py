"""Each toxic of the chaos room's proxy does what it says, before a local echo server."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from aos.infra.local.host import LOOPBACK, free_port
from tests.chaos.proxy import Toxic
from tests.chaos.proxy_control import Control, command
from tests.conftest import REPOSITORY

LINK = "one->echo"


class Echo(socketserver.BaseRequestHandler):
    """Gives back what it gets."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


@contextmanager
def echo_server() -> Iterator[int]:
    """Runs in threads; its port."""
    with socketserver.ThreadingTCPServer((LOOPBACK, free_port()), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join(10)


@pytest.fixture(scope="module")
def whole() -> Iterator[tuple[Control, int]]:
    """The proxy's control and its port."""
    front, control = free_port(), free_port()
    with echo_server() as behind:
        argv = command({LINK: (front, behind), "none->nobody": (free_port(), free_port())}, control)
        process = subprocess.Popen(argv, cwd=REPOSITORY)
        try:
            steer = Control(control)
            steer.wait()
            yield steer, front
        finally:
            process.terminate()
            process.wait(10)


@pytest.fixture
def proxy(whole: tuple[Control, int]) -> Iterator[Control]:
    whole[0].heal()
    yield whole[0]
    whole[0].heal()


@pytest.fixture
def client(whole: tuple[Control, int], proxy: Control) -> Iterator[socket.socket]:
    with socket.create_connection((LOOPBACK, whole[1]), timeout=5) as link:
        assert said(link, b"hello") == b"hello"
        yield link


def said(link: socket.socket, data: bytes) -> bytes:
    """Send, and read as many bytes back."""
    link.sendall(data)
    return heard(link, len(data))


def nothing_comes(client: socket.socket) -> bool:
    """Whether .3 s pass without a byte."""
    client.settimeout(0.3)
    try:
        client.recv(100)
        return False
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)


def heard(link: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = link.recv(1 << 16)
        if not part:
            break
        found += part
    return found


def took(link: socket.socket, data: bytes) -> float:
    began = time.monotonic()
    assert said(link, data) == data
    return time.monotonic() - began


def test_without_a_toxic_bytes_pass_both_ways_unchanged(client: socket.socket, proxy: Control) -> None:
    data = bytes(range(256)) * 4000
    assert said(client, data) == data
    seen = proxy.stats()[LINK]
    assert seen["links"] == 1
    assert seen["bytes_to"] >= len(data)
    assert seen["bytes_from"] >= len(data)


def test_the_end_of_one_side_reaches_the_other(client: socket.socket) -> None:
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert heard(client, 100) == b"last"


def test_latency_delays_each_way_and_not_the_throughput(client: socket.socket, proxy: Control) -> None:
    proxy.set(LINK, Toxic(latency_s=0.1))
    assert took(client, b"x") >= 0.2
    assert took(client, b"x" * (4 << 20)) < 3  # 64 chunks one after the other would take 12 s
    proxy.set(LINK, Toxic(latency_s=0.1), ways=["to"])
    proxy.set(LINK, Toxic(), ways=["from"])
    assert 0.1 <= took(client, b"x") < 0.2
    proxy.heal(LINK)
    assert took(client, b"x") < 0.1


def test_jitter_varies_the_delay_and_keeps_the_order(client: socket.socket, proxy: Control) -> None:
    proxy.set(LINK, Toxic(latency_s=0.03, jitter_s=0.03))
    delays = [took(client, b"x") for _ in range(20)]
    assert max(delays) - min(delays) > 0.02
    data = b""
    for number in range(50):
        client.sendall(bytes([number]) * 100)
        data += bytes([number]) * 100
        time.sleep(0.002)
    assert heard(client, len(data)) == data


def test_bandwidth_is_bounded(client: socket.socket, proxy: Control) -> None:
    proxy.set(LINK, Toxic(bytes_per_s=100_000), ways=["to"])
    assert took(client, b"x" * 50_000) >= 0.45


def test_slices_come_one_by_one(client: socket.socket, proxy: Control) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    proxy.set(LINK, Toxic(slice_bytes=1, slice_s=0.005), ways=["from"])
    client.sendall(b"sliced")
    parts = []
    while sum(map(len, parts)) < 6:
        parts.append(client.recv(100))
    assert b"".join(parts) == b"sliced"
    assert len(parts) >= 4


def test_a_stalled_way_passes_nothing_and_everything_once_healed(
    client: socket.socket, proxy: Control
) -> None:
    proxy.set(LINK, Toxic(stall=True), ways=["from"])
    client.sendall(b"held")
    assert nothing_comes(client)
    proxy.heal(LINK)
    assert heard(client, 4) == b"held"
    assert said(client, b"on") == b"on"


def test_swallowed_bytes_are_gone_and_the_link_with_them_once_healed(
    client: socket.socket, proxy: Control
) -> None:
    proxy.set(LINK, Toxic(swallow=True), ways=["to"])
    client.sendall(b"gone")
    assert nothing_comes(client)
    proxy.heal(LINK)
    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_link_is_cut_after_so_many_bytes(client: socket.socket, proxy: Control) -> None:
    proxy.set(LINK, Toxic(cut_after_bytes=100_000), ways=["to"])
    with pytest.raises(ConnectionError):  # noqa: PT012 where it breaks is TCP's affair
        for _ in range(1000):
            said(client, b"x" * 1000)
            if not client.recv(0):
                continue


def test_reset_is_an_rst_and_new_connections_are_taken(
    client: socket.socket, proxy: Control, whole: tuple[Control, int]
) -> None:
    assert proxy.reset(LINK) == 1
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with socket.create_connection((LOOPBACK, whole[1]), timeout=5) as again:
        assert said(again, b"new") == b"new"


def test_down_refuses_and_heal_listens_again(
    client: socket.socket, proxy: Control, whole: tuple[Control, int]
) -> None:
    proxy.down(LINK)
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOOPBACK, whole[1]), timeout=5)
    proxy.heal(LINK)
    with socket.create_connection((LOOPBACK, whole[1]), timeout=5) as again:
        assert said(again, b"new") == b"new"


def test_a_server_that_is_away_is_a_reset(proxy: Control, whole: tuple[Control, int]) -> None:
    front, control = free_port(), free_port()
    process = subprocess.Popen(command({"x": (front, free_port())}, control), cwd=REPOSITORY)
    try:
        steer = Control(control)
        steer.wait()
        with (
            socket.create_connection((LOOPBACK, front), timeout=5) as link,
            pytest.raises(ConnectionResetError),
        ):
            link.recv(1)
        assert steer.stats()["x"]["refused"] == 1
    finally:
        process.terminate()
        process.wait(10)


def test_orders_that_mean_nothing_are_errors(proxy: Control) -> None:
    with pytest.raises(ValueError, match="no->link"):
        proxy.down("no->link")
    with pytest.raises(ValueError, match="no such order"):
        proxy._order(do="dance")
