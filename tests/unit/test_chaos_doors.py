"""The doors of the chaos room's broker: what is asked for is added, what was there stays."""

from __future__ import annotations

from tests.chaos.doors import OPEN, SECURE, Door, with_doors

PLAIN = {
    "listeners": "PLAINTEXT://127.0.0.1:1,CONTROLLER://127.0.0.1:2",
    "advertised.listeners": "PLAINTEXT://127.0.0.1:1",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
}
NAMED = {
    "listeners": "CLIENTS://127.0.0.1:1,STACK://127.0.0.1:3",
    "advertised.listeners": "CLIENTS://127.0.0.1:1,STACK://127.0.0.1:3",
    "listener.security.protocol.map": "CLIENTS:SASL_SSL,STACK:SSL",
    "inter.broker.listener.name": "STACK",
    "super.users": "User:CN=aos-stack",
}


def test_a_link_is_one_more_listener_that_is_shown_at_its_proxy() -> None:
    found = with_doors(PLAIN, {"LINK0": Door(OPEN, 7, 8)})
    assert found["listeners"].endswith(",LINK0://127.0.0.1:7")
    assert found["advertised.listeners"].endswith(",LINK0://127.0.0.1:8")
    assert found["inter.broker.listener.name"] == "PLAINTEXT"
    assert "super.users" not in found


def test_the_open_door_of_a_secure_broker_lets_in_who_says_no_name_and_links_ask_for_one() -> None:
    found = with_doors(NAMED, {"PLAINTEXT": Door(OPEN, 5, 5), "LINK0": Door(SECURE, 7, 8)})
    assert found["super.users"] == "User:CN=aos-stack;User:ANONYMOUS"
    assert found["inter.broker.listener.name"] == "STACK"
    assert "listener.name.link0.scram-sha-512.sasl.jaas.config" in found
    assert "listener.name.plaintext.scram-sha-512.sasl.jaas.config" not in found
