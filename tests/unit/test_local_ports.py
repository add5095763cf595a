"""Ports of the stack stay the stack's while its servers are down."""

from __future__ import annotations

from aos.infra.local.host import FIRST_PORT, ephemeral_ports_from, free_port, is_free


def test_a_free_port_is_below_those_of_outgoing_connections() -> None:
    ports = {free_port() for _ in range(20)}
    assert all(FIRST_PORT <= port < ephemeral_ports_from() for port in ports)
    assert all(is_free(port) for port in ports)
