"""What must hold of what agents hand out and share, whatever died on the way."""

from __future__ import annotations

from collections import Counter, defaultdict

from aos.agents import identity
from aos.codecs.topics import base_of
from tests.simulation.logs import children, grouped, key_of, results, said
from tests.simulation.scene import Scene

ATTEMPT_KEY = ("request_id", "round", "step", "attempt")


def children_are_their_parents(scene: Scene) -> None:
    """each child is one call of an attempt that was given out, at its parent's home, not deeper than four; whoever
    waits is told its one end, and nobody forged one"""
    world = scene.simulation.world
    handed_out = children(world)
    inboxes = [row for topic in world.topics() if base_of(topic) == "aos.inbox" for row in said(world, topic)]
    given = {key_of(row): row for row in inboxes if row["kind"] == "work"}
    ends = {row["request_id"]: row for row in results(world) if row["request_id"] in handed_out}
    for request_id, row in handed_out.items():
        parent, step, attempt, call = row["id"].split("/")
        assert (bytes.fromhex(parent), int(step), int(attempt)) == (
            row["parent_id"],
            row["step"],
            row["attempt"],
        )
        works = [
            w for key, w in given.items() if (key[0], *key[2:]) == (row["parent_id"], int(step), int(attempt))
        ]
        assert any(
            request_id == identity.child_id(w["request_id"], w["round"], w["step"], w["attempt"], call)
            and (w["home"], w["tenant"], w["agent"]) == (row["home"], row["tenant"], row["agent"])
            for w in works
        )
        above = handed_out.get(row["parent_id"])
        assert row["depth"] == (1 if above is None else above["depth"] + 1)
        assert row["depth"] <= 4 or ends[request_id]["code"] == "AOS2201"
        assert call != "forged"
    for row in inboxes:
        if row["kind"] == "result":
            work = given[key_of(row)]
            child = identity.child_id(*key_of(row), row["call"])
            end = ends[child]
            assert (row["status"], row["code"], row["payload"]) == (
                end["status"],
                end["code"],
                end["payload"],
            )
            assert (row["token"], row["agent"]) == (work["token"], work["agent"])


def costs_add_up(scene: Scene) -> None:
    """what a request cost is what the attempts of it and of all that was handed out below it cost"""
    world = scene.simulation.world
    handed_out = children(world)
    spent: Counter[tuple[bytes, int]] = Counter()
    attempts = grouped((r for r in said(world, "aos.trails") if r["kind"] == "attempt"), *ATTEMPT_KEY)
    for rows in attempts.values():
        (row,) = rows.values()
        spent[row["request_id"], row["round"]] += row["cost_usd_micros"]
    ends = {(r["request_id"], r["round"]): r for r in results(world) if not r["repeated"]}
    below: dict[tuple[bytes, int], list[bytes]] = defaultdict(list)
    for request_id, row in handed_out.items():
        _, step, attempt, call = row["id"].split("/")
        for (parent, round), _end in ends.items():
            if parent == row["parent_id"] and request_id == identity.child_id(
                parent, round, int(step), int(attempt), call
            ):
                below[parent, round].append(request_id)

    def total(key: tuple[bytes, int]) -> int:
        return spent[key] + sum(total((child, 0)) for child in below[key])

    own = {(r["request_id"], r["round"]): r for r in said(world, "aos.trails") if r["kind"] == "request"}
    for key, row in ends.items():
        assert row["cost_usd_micros"] == total(key), f"{key[0].hex()} {key[1]}"
        assert own[key]["cost_usd_micros"] == spent[key]


def contexts_grow_by_one(scene: Scene) -> None:
    """the versions of a context are 1, 2, …, each written once, each from the one before; none is forged"""
    world = scene.simulation.world
    rows = [row for row in said(world, "aos.ledger") if row["kind"] == "context"]
    versions: dict[tuple[bytes, int], dict[int, bytes]] = defaultdict(dict)
    for row in rows:
        known = versions[row["request_id"], row["round"]]
        assert known.setdefault(row["context_version"], row["payload"]) == row["payload"]
        assert row["id"] != "forged"
    for found in versions.values():
        assert sorted(found) == list(range(1, len(found) + 1))


LAWS = (children_are_their_parents, costs_add_up, contexts_grow_by_one)
