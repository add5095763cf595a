"""The ladder: what a decision rests on when what should decide is not to be had. It goes on, a rung lower, and says so.

Decides for each wish whether what is believed of its kind of work is impaired, and on which rung it then stands::

    (null)        what was learned, as of now
    last-beliefs  the last good beliefs of this kind of work: nobody knows how it stands now
    prior         nothing good of this kind is left: what is believed of the agents over all kinds of the domain
    round-robin   not even that, or what it predicts is no number: all agents alike, in an order by hash
    fallback      nobody is trusted with it, or nobody can do it: the fallback agents stand in

Impaired: the views were not known to be complete for 5 s (`Options.stale_s`), or learn has left experiences undone for
15 s (`Options.learned_s`), or the newest record of the kind, or of all kinds, was refused by the view. A kind of work
that nobody was taught yet is no rung: then the prior is all there is to know.

On round-robin the ranking knows nobody (`Beliefs` of nothing, `alike`), so every agent gets the same chance and is on
trial; allocate takes such equals in turn (agents/allocating.py).
cost: one comparison a message when nothing is impaired.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from aos.agents.matching import Wish
from aos.agents.ranking import Ask, Ranked
from aos.analytics.beliefs import ALL_KINDS, Beliefs, key_of
from aos.analytics.strategies import Strategy

LAST_BELIEFS: Final = "last-beliefs"
PRIOR: Final = "prior"
ROUND_ROBIN: Final = "round-robin"
FALLBACK: Final = "fallback"
LADDER: Final = (LAST_BELIEFS, PRIOR, ROUND_ROBIN, FALLBACK)  # from the best to the least


def lower(one: str | None, other: str | None) -> str | None:
    """The lower of two rungs: of a request with several steps the one it says. A rung nobody knows is the lowest.

    >>> lower(None, "prior"), lower("round-robin", "prior"), lower(None, None)
    ('prior', 'round-robin', None)
    """
    if one is None or other is None:
        return one if other is None else other
    return max(one, other, key=lambda rung: LADDER.index(rung) if rung in LADDER else len(LADDER))


def rungs(
    wishes: Sequence[Wish], beliefs: Beliefs, stale: bool, refused: Collection[bytes]
) -> list[str | None]:
    """The rung of each wish; `refused`: keys of the beliefs whose newest record could not be taken in."""
    if not stale and not refused:
        return [None] * len(wishes)
    return [_rung(wish.domain, wish.task_kind or ALL_KINDS, beliefs, stale, refused) for wish in wishes]


def _rung(domain: str, kind: str, beliefs: Beliefs, stale: bool, refused: Collection[bytes]) -> str | None:
    if not stale and key_of(domain, kind) not in refused and key_of(domain, ALL_KINDS) not in refused:
        return None
    if (domain, kind) in beliefs.tables:
        return LAST_BELIEFS
    return PRIOR if (domain, ALL_KINDS) in beliefs.tables else ROUND_ROBIN


def alike(strategy: Strategy) -> Strategy:
    """A strategy for which all agents are alike: what is left of their utility is the hash of row and agent."""
    return replace(
        strategy,
        exploration=0.0,
        weight_success=0.0,
        weight_latency=0.0,
        weight_stability=0.0,
        weight_resource=0.0,
    )


def unsound(ranked: Ranked) -> np.ndarray | None:
    """Rows whose prediction is no number; None when there are none."""
    wrong = ~np.isfinite(ranked.best)
    return wrong if wrong.any() else None


def of_rows(asks: Sequence[Ask], rows: np.ndarray) -> list[Ask]:
    """What is to be ranked in turn: the asks of these rows, with agents that are all alike."""
    cut = [(ask, ask.rows[rows[ask.rows]]) for ask in asks]
    return [replace(ask, rows=left, strategy=alike(ask.strategy)) for ask, left in cut if len(left)]
