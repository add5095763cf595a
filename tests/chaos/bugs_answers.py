"""Planted bugs of supervise that only agents which misbehave bring to light: which answers count, when retries come."""

from __future__ import annotations

from typing import Any

from aos.agents import identity, ledger, ledger_doubt, ledger_life
from tests.chaos.planting import bug


@bug("supervise", "I1", "I5", faults="26")
def supervise_believes_forged() -> None:
    """No token is looked at."""
    identity.token_is = lambda expected, given: True


@bug("supervise", "I1", "I5", faults="26")
def supervise_believes_late() -> None:
    """An answer counts when the attempt's time is over, too."""
    real = ledger.doubt

    def doubt(turn: Any, request: Any, step: Any, row: Any) -> str | None:
        code = real(turn, request, step, row)
        return None if code == "AOS3005" and request is not None and step is not None else code

    ledger.doubt = doubt


@bug("supervise", "I5", faults="26")
def supervise_forgets_ignored() -> None:
    """Answers that do not count leave no trail."""
    code: Any = ledger_doubt
    code.say_ignored = lambda *given: None


@bug("supervise", "I5", faults="25")
def supervise_retries_at_once() -> None:
    """A retry does not wait."""
    ledger_life.retry_wait_us = lambda turn, request, step: 0


@bug("supervise", "I5", faults="25")
def supervise_asks_the_same() -> None:
    """Who failed a step is asked again."""
    real = ledger_life.attempt_failed

    def failed(turn: Any, request: Any, step: Any, **how: Any) -> None:
        real(turn, request, step, **how)
        step.failed_agents = ()

    modules: list[Any] = [ledger, ledger_life]
    for code in modules:
        code.attempt_failed = failed
