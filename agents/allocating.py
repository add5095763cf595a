"""How one attempt gets its agent: each alternative's chance of being the best, a draw, and who of equals takes it.

Decides, for a row: (1) the chance of each alternative to be the best, from its posterior; (2) which alternatives
cannot be told apart (an *arm*); (3) by a draw which arm with a free slot takes the row; (4) without randomness who
of the arm. The logged probability is that of the arm among those with a free slot.

in: posterior means and deviations [rows, alternatives]; slots of the alternatives; a number in 0..1 a row.
state: `Slot.served` and `Slot.turn` (agents/load.py), the rotation of the control arm.
cost: for 8 alternatives 5 us a row for the chances, 2 us for the arms; for 16, whose pairs count, 18 and 6 us; one
    row of 16 takes .2 ms for the chances and .1 ms for the arms.
source: probability matching (Thompson 1933), computed instead of sampled, so that it can be logged; spreading by
    start-time fair queueing (Goyal, Vin, Cheng 1996) with agents in the place of flows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from aos.agents.load import Slot

NODES = 8  # a row's grid has so many points for each alternative: error < .8 points; 6 gave 1.6, 5 gave 2.4
REACH = 3.5  # deviations to each side that the grid covers; outside lies .05 % of a posterior
DEVIATION_MIN = 1e-4
BLOCK_VALUES = 1 << 17  # values of one intermediate array: half a megabyte, stays in the cache
TIE_SCORE = 1e-3  # means so near are equal: a difference in score that nobody would notice
TIE_DEVIATIONS = 0.1  # .. or so near in deviations: either is then the better one with .53 at most
TIE_RATIO = 1.5  # .. if neither is known so much better than the other: else exploring one is worth more
REST_MIN = 0.02  # chances of the free ones that sum to less are mostly error: then those are compared anew
LOAD_SLACK = 0.5  # of an arm only members whose load per slot is so near the least take part in the spreading
SERVED_LAG = 4.0  # rounds an agent that was away may catch up
OVERFLOW_MIN = 0.1  # of the best expected score: for less a row rather waits for a slot of a better agent
ROTATIONS_MAX = 10_000
DRAW_BITS = 24  # as many as a 32-bit float holds, so that the logged draw is the draw


class Choice(NamedTuple):
    """What was chosen: the alternative's position, the probability of the whole choice, whether capacity kept the
    best alternative (and all its equals) out, and the positions that had a free slot."""

    position: int
    probability: float
    overridden: bool
    free: list[int]


class Drawn(NamedTuple):
    """What a row's draw `u` says when all its alternatives have a free slot: the position drawn, the positions of
    its arm (None: all are of one arm) and the probability of that arm."""

    u: float
    position: int
    members: list[int] | None
    probability: float


class Draws:
    """Numbers in [0, 1) that depend on the attempt's key and the salt only; exact as 32-bit floats."""

    def __init__(self, salt: int) -> None:
        key = (salt & (1 << 64) - 1).to_bytes(8, "big")
        self._salted = blake2b(digest_size=4, key=key, person=b"aos-draw")

    def of(self, key: bytes) -> float:
        """The attempt's number."""
        return float(self.of_all([key])[0])

    def of_all(self, keys: Iterable[bytes]) -> np.ndarray:
        """The numbers of many attempts: float64 [keys]."""
        digests = []
        for key in keys:
            digest = self._salted.copy()
            digest.update(key)
            digests.append(digest.digest())
        numbers: np.ndarray = np.frombuffer(b"".join(digests), ">u4") >> (32 - DRAW_BITS)
        return numbers / (1 << DRAW_BITS)


def chances(mean: np.ndarray, deviation: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The chance of each alternative to have the highest score: float64 [rows, alternatives], rows sum to 1.

    Scores are independent normals cut to 0..1. `present` marks real alternatives (False: padding, chance 0); a
    row without any gives zeros. P(i is best) is the integral of prod F_j (j != i) over dF_i, by the trapezoid rule
    on a grid made for the row: every alternative puts `NODES` points where it and the maximum can lie, so that
    narrow posteriors are seen beside wide ones.

    >>> chances(np.array([[0.6, 0.5]]), np.array([[0.1, 0.1]]), np.ones((1, 2), bool)).round(2).tolist()
    [[0.76, 0.24]]
    """
    rows, count = mean.shape
    result = np.zeros((rows, count))
    if not rows or not count:
        return result
    step = min(rows, max(1, BLOCK_VALUES // (count * count * NODES)))
    scratch = np.empty((3, count * step * (count * NODES + 2)), np.float32)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        result[part] = _chances(mean[part], deviation[part], present[part], scratch)
    return result


def _chances(mean: np.ndarray, deviation: np.ndarray, present: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """`scratch` is three times the memory for a value of each alternative at each point of the grid: given, because
    the system takes as long to hand out fresh memory as the arithmetic takes."""
    m = np.minimum(np.maximum(mean, 0.0), 1.0).astype(np.float32).T[:, :, None]  # [alternatives, rows, 1]
    s = np.maximum(deviation, DEVIATION_MIN).astype(np.float32).T[:, :, None]
    here = present.T[:, :, None]
    x = _grid(m, s, here)
    z, below, middle = (values[: len(m) * x.size].reshape(len(m), *x.shape) for values in scratch)
    np.subtract(x, m, out=z)
    z /= s
    floor, ceiling = _normal(-m / s), _normal((1 - m) / s)
    _normal(z, out=below)  # F_i: [alternatives, rows, grid]
    below -= floor
    below /= ceiling - floor
    below.clip(0, 1, out=below)
    if not present.all():
        np.copyto(below, np.float32(1), where=~here)
    others = _products_of_others(below, out=z)
    first = (below[:, :, 0] * others[:, :, 0]).T
    middle = np.add(others[:, :, 1:], others[:, :, :-1], out=middle[:, :, 1:])
    rise = np.subtract(below[:, :, 1:], below[:, :, :-1], out=z[:, :, 1:])
    found = np.einsum("ark,ark->ra", rise, middle).astype(np.float64) / 2
    found += first / np.maximum(present.sum(axis=1, keepdims=True), 1)
    found = np.where(present, np.maximum(found, 0.0), 0.0)
    total = found.sum(axis=1, keepdims=True)
    result: np.ndarray = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    return result


def _grid(m: np.ndarray, s: np.ndarray, here: np.ndarray) -> np.ndarray:
    """Where the integral of each row is looked at, in order: [rows, alternatives * nodes + 2]."""
    bottom, top = np.maximum(m - REACH * s, 0), np.minimum(m + REACH * s, 1)
    low = np.where(here, bottom, 0).max(axis=0)  # below it, somebody is surely better
    high = np.maximum(np.where(here, top, low), low)
    bottom = np.maximum(bottom, low)
    # each alternative's points are shifted against the others': equal posteriors then make one fine grid
    share = (np.arange(NODES) + ((np.arange(len(m)) + 0.5) / len(m))[:, None, None]).astype(
        np.float32
    ) / NODES
    grid = bottom + np.maximum(high - bottom, 0) * share  # [alternatives, rows, nodes]
    ends = np.concatenate([low, high.max(axis=0)], axis=1)
    x = np.concatenate([grid.transpose(1, 0, 2).reshape(len(low), -1), ends], axis=1)
    x.sort(axis=1)
    return x


def _normal(z: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The normal distribution function, within .0002 (Page 1977): an exp instead of an erf. `z` is cut to -6..6."""
    z.clip(-6, 6, out=z)
    power: np.ndarray = np.multiply(z, z, out=out)
    power *= np.float32(-0.07056)
    power -= np.float32(1.5957691)
    power *= z
    np.exp(power, out=power)
    power += 1
    found: np.ndarray = np.reciprocal(power, out=power)
    return found


def _products_of_others(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """For each i the product of all values but the i-th, along the first axis, without dividing by zeros, in `out`."""
    out[0] = 1
    for i in range(1, len(values)):
        np.multiply(out[i - 1], values[i - 1], out=out[i])
    after = values[-1].copy()
    for i in range(len(values) - 2, -1, -1):
        out[i] *= after
        after *= values[i]
    return out


def with_floor(chance: np.ndarray, trial: np.ndarray, present: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Chances in which each alternative on trial has at least `floor` [rows] (at most its equal share).

    A mixture: with probability floor x (number on trial) one of those on trial is drawn evenly, else as before.
    """
    if not trial.any():
        return chance
    least = np.minimum(floor, 1.0 / np.maximum(present.sum(axis=1), 1))[:, None]
    result: np.ndarray = chance * (1 - least * trial.sum(axis=1, keepdims=True)) + least * trial
    return result


def arms(mean: np.ndarray, deviation: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Which alternatives cannot be told apart: int64 [rows, alternatives], the position of the arm's leader.

    The leader is the one of highest mean that is in no arm yet; who is equal to the leader joins it. Equal: means
    at most max(TIE_SCORE, TIE_DEVIATIONS x pooled deviation) apart and deviations at most TIE_RATIO to 1 (or both
    below TIE_SCORE). Agents that learn equal things stay equal within that; agents that differ leave each
    other's arm as soon as the difference is a tenth of what is not known about them.
    """
    rows, count = mean.shape
    arm = np.full((rows, count), -1, np.int64)
    step = max(1, BLOCK_VALUES // max(1, 8 * count * count))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        _fill_arms(arm[part], mean[part], deviation[part], present[part])
    return arm


def _fill_arms(arm: np.ndarray, mean: np.ndarray, deviation: np.ndarray, present: np.ndarray) -> None:
    every = np.arange(len(mean))[:, None]
    order = np.argsort(np.where(present, -mean, np.inf), axis=1, kind="stable")
    mean, deviation = mean[every, order], deviation[every, order]  # best first
    own, other = deviation[:, :, None], deviation[:, None, :]
    pooled = np.sqrt((own**2 + other**2) / 2)
    equal = np.abs(mean[:, :, None] - mean[:, None, :]) <= np.maximum(TIE_SCORE, TIE_DEVIATIONS * pooled)
    equal &= np.maximum(own, other) <= np.maximum(TIE_RATIO * np.minimum(own, other), TIE_SCORE)
    found = np.full(order.shape, -1)
    open_ = present[every, order]  # in no arm yet
    for place in range(order.shape[1]):
        joins = equal[:, place] & open_
        joins &= open_[:, place : place + 1]
        np.copyto(found, order[:, place : place + 1], where=joins)
        open_ ^= joins
        if not open_.any():
            break
    arm[every, order] = found


def drawn_of(chance: np.ndarray, arm: np.ndarray, present: np.ndarray, u: np.ndarray) -> list[Drawn]:
    """What `choose` would draw with `u` [rows] for rows all of whose alternatives are free; arrays as from `chances`.

    Sums go from left to right, as there: the same bits.
    """
    rows, width = chance.shape
    if not rows or not width:
        return [Drawn(number, -1, None, 0.0) for number in u.tolist()]
    every, counts = np.arange(rows), present.sum(axis=1)
    left = np.subtract.accumulate(np.concatenate([u[:, None], chance], axis=1), axis=1)[:, 1:]
    hit = (left < 0) & present
    position = np.where(hit.any(axis=1), hit.argmax(axis=1), counts - 1)
    inside = (arm == arm[every, position][:, None]) & present
    size = inside.sum(axis=1)
    mass = np.add.accumulate(np.where(inside, chance, 0.0), axis=1)[:, -1]
    probability = np.where(size == 1, chance[every, position], np.where(size == counts, 1.0, mass))
    whole = (size == counts).tolist()
    members = [None if yes else np.flatnonzero(row).tolist() for yes, row in zip(whole, inside, strict=True)]
    return list(map(Drawn, u.tolist(), position.tolist(), members, probability.tolist()))


def choose(
    slots: Sequence[Slot],
    chance: Sequence[float],
    arm: Sequence[int],
    u: float,
    rest: Callable[[Sequence[int]], Sequence[float]],
) -> Choice | None:
    """Who takes a row: an arm by its chance among those with a free slot, in it the one whose turn it is.

    `rest(free)` gives the chances to be the best of the free ones (as long as `chance`), for when hardly any chance
    is left without those that are not. None when no alternative has a free slot. Changes nothing: see `charge`.
    """
    free = [i for i, slot in enumerate(slots) if slot.use < 1.0]
    if not free:
        return None
    best, total = None, 1.0
    if len(free) < len(slots):
        best = arm[max(range(len(slots)), key=chance.__getitem__)]
        total = sum([chance[i] for i in free])
        if total < REST_MIN:
            chance = rest(free)
            total = sum([chance[i] for i in free])
    target, drawn = u * total, free[-1]
    for i in free:
        target -= chance[i]
        if target < 0:
            drawn = i
            break
    own = arm[drawn]
    members = [i for i in free if arm[i] == own]
    overridden = best is not None and best not in [arm[i] for i in free]
    if len(members) == 1:
        return Choice(drawn, chance[drawn] / total, overridden, free)
    mass = sum([chance[i] for i in members]) / total if len(members) < len(free) else 1.0
    equals = [slots[i] for i in members]
    slot = turn_of(equals, [slot.served for slot in equals], 1.0)
    return Choice(members[equals.index(slot)], mass, overridden, free)


def better_to_wait(slots: Sequence[Slot], mean: Sequence[float], hope: Sequence[float]) -> bool:
    """Whether all that is free are alternatives that hardly ever succeed, while better ones are only busy.

    `hope` is the mean and a deviation: what is not known yet may be tried. An agent that fails at once is always free;
    without this it would be given all that the good ones have no slots for, however well its failures are known.
    """
    best = max([own for slot, own in zip(slots, mean, strict=True) if slot.limit], default=0.0)
    free = [own for slot, own in zip(slots, hope, strict=True) if slot.use < 1.0]
    return all(own < OVERFLOW_MIN * best for own in free)


def turn_of(equals: Sequence[Slot], served: Sequence[float], highest_use: float) -> Slot:
    """Whose turn it is among equals with a free slot: of those not much more loaded than the least loaded one, the
    least served in relation to its slots, then the one whose last turn is longest ago.

    `served` is what they were served, `highest_use` no less than the use of any of them.
    """
    behind, least = max(served) - SERVED_LAG, min(served)
    if highest_use > LOAD_SLACK:
        most = min([slot.use for slot in equals]) + LOAD_SLACK
        equals = [slot for slot in equals if slot.use <= most]
        least = min([slot.served for slot in equals])
    if least < behind:
        least = behind
    last = [(slot.turn, slot.agent, slot) for slot in equals if slot.served <= least]
    return (min(last) if len(last) > 1 else last[0])[2]


def charge(chosen: Slot, foremost: float, turn: int) -> None:
    """Count an assignment for the spreading; `foremost` is what the most served one of its arm was served."""
    chosen.served = max(chosen.served, foremost - SERVED_LAG) + 1.0 / max(chosen.limit, 1)
    chosen.turn = turn


class Rotation:
    """The control arm: each (domain, kind of work) goes round its free alternatives in the order of their names."""

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], str] = {}

    def choose(self, subject: tuple[str, str], slots: Sequence[Slot]) -> Choice | None:
        """The next free one after the last; None when no alternative has a free slot."""
        free = [i for i, slot in enumerate(slots) if slot.use < 1.0]
        if not free:
            return None
        last = self.last.get(subject, "")
        position = min(free, key=lambda i: _after(slots[i].agent, last))
        wanted = min((slot.agent for slot in slots), key=lambda agent: _after(agent, last))
        return Choice(position, 1.0 / len(free), slots[position].agent != wanted, free)

    def took(self, subject: tuple[str, str], agent: str) -> None:
        """The rotation goes on after `agent`; the subject not seen for longest is forgotten above the bound."""
        self.last.pop(subject, None)
        self.last[subject] = agent
        if len(self.last) > ROTATIONS_MAX:
            del self.last[next(iter(self.last))]


def _after(agent: str, last: str) -> tuple[bool, str]:
    return agent <= last, agent
