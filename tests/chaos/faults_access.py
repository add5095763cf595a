"""Suite config, of the secure stand: passwords, rights and certificates that are wrong, taken away and given back."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from aos.codecs.settings import Settings
from aos.infra.local.kafka import BROKER_NAME
from aos.infra.security.certificates import ensure_ca
from aos.infra.security.grants import grant, passwords
from aos.infra.security.local import stack_security
from aos.infra.security.rights import Right, plan, users
from tests.chaos.faults import Injected, inject_by
from tests.chaos.looks import lines, log_size
from tests.chaos.stand import Stand

TOLD_S = 30.0  # until a log says what is wrong
BACK_S = (
    60.0  # until work goes on once it is mended: a worker that died again and again is started every 10 s
)
HELD_S = 4.0
KINDS = 2  # each costs two restarts; with all four in a row producers outwait their own time-outs
STOP_S = 3.0  # a broker whose clients come again and again takes its time; it is killed then
SECURE = frozenset({"secure"})
EXPIRED, EARLY, ELSEWHERE, FOREIGN = "expired", "not valid yet", "of another host", "of another authority"


def credentials(stand: Stand, random: Random) -> Injected:
    """Fault 35: a password is another one, one is rotated, a right is taken away, all while work goes on.

    What is wrong must stand in a log; once it is mended all goes on with no hand on any process.
    """
    began, failed, said = time.time(), [], []
    folder, known = _users(stand)
    stand.wait_ready(began)  # whoever still comes back from the fault before would be taken for this one's
    # wrong: who runs goes on, who starts is not let in
    with _troubled(
        stand, "worker-edge-0", "AOS5011.*aos.match|aos.match.*not accepted", "wrong", failed, said
    ):
        _grant(stand, {**known, "aos.match": secrets.token_hex(8)}, plan(_named(stand)))
        stand.up.kill_worker("edge")
    _mend(stand, lambda: _grant(stand, known, plan(_named(stand))), "wrong", failed, said)
    # rotated: the new one is in the file before the broker knows it; who runs goes on, who starts reads the file
    (folder / "aos.supervise").write_text(secrets.token_hex(32))
    _mend(stand, lambda: _grant(stand, _users(stand)[1], plan(_named(stand))), "rotated", failed, said)
    if not stand.kill("worker-core-0"):
        failed.append(("I1", "worker-core-0 had no work in hand"))
    _mend(stand, lambda: None, "rotated and killed", failed, said)
    # revoked: a right of a processor that runs
    fewer = [right for right in plan(_named(stand)) if not _writes_ledger(right)]
    with _troubled(stand, "worker-edge-0", "TopicAuthorizationFailed|AOS5015", "revoked", failed, said):
        _grant(stand, _users(stand)[1], fewer)
    _mend(stand, lambda: _grant(stand, _users(stand)[1], plan(_named(stand))), "revoked", failed, said)
    healed = time.time()
    return Injected(
        began,
        healed,
        "worker-edge-0",
        kills=1,
        outage=healed - began,
        failed=tuple(failed),
        detail=", ".join(said),
    )


def certificates(stand: Stand, random: Random) -> Injected:
    """Fault 36: the broker comes back with a certificate that is expired, early, of another host, of another authority.

    Two of these, drawn by the seed. Nobody may speak to it then, each must be told why, and with a new one all goes on
    with no hand on any process.
    """
    began, failed, said = time.time(), [], []
    for number, kind in enumerate(random.sample([EXPIRED, EARLY, ELSEWHERE, FOREIGN], KINDS)):
        with _troubled(stand, "worker-core-0", "(?i)certificate", kind, failed, said):
            stand.stop_broker(STOP_S)
            _show(stand, kind)
            before = stand.in_hand.results()
            stand.start_broker()
            time.sleep(HELD_S)
            if before is not None and (stand.in_hand.results() or 0) > before:
                failed.append(("I10", f"{kind}: somebody spoke to the broker"))
        stand.stop_broker(STOP_S)
        _show(stand, f"rotated {number}")
        _mend(stand, stand.start_broker, f"rotated after {kind}", failed, said)
    healed = time.time()
    return Injected(
        began, healed, "kafka", outage=healed - began, failed=tuple(failed), detail=", ".join(said)
    )


def _show(stand: Stand, kind: str) -> None:
    """The broker's certificate for clients from its next start on."""
    ca, now = ensure_ca(stand.folder / "security"), datetime.now(UTC)
    name = f"{BROKER_NAME}-{kind.replace(' ', '-')}"
    cert, key = {
        EXPIRED: lambda: ca.issue(name, now=now - timedelta(days=40), days=30),
        EARLY: lambda: ca.issue(name, now=now + timedelta(days=3)),
        ELSEWHERE: lambda: ca.issue(name, ["broker.example"]),
        FOREIGN: lambda: ensure_ca(stand.folder / "foreign").issue(name),
    }.get(kind, lambda: ca.issue(name))()
    stand.broker.certify(key.read_text() + cert.read_text())


@contextmanager
def _troubled(
    stand: Stand, process: str, pattern: str, what: str, failed: list[tuple[str, str]], said: list[str]
) -> Iterator[None]:
    """The process's log must say what is wrong, soon after."""
    mark = log_size(stand, process)
    yield
    began = time.time()
    while not lines(stand, process, pattern, mark):
        if time.time() - began > TOLD_S:
            failed.append(("I11", f"{what}: {process} did not say so within {TOLD_S:.0f} s"))
            return
        time.sleep(0.2)
    said.append(f"{what}: told after {time.time() - began:.1f} s")


def _mend(
    stand: Stand, mend: Callable[[], object], what: str, failed: list[tuple[str, str]], said: list[str]
) -> None:
    """Mend it, and wait until work goes on by itself."""
    mend()
    began = time.time()
    if not (stand.wait_work(BACK_S) and stand.wait_ready(began, BACK_S)):
        failed.append(("I8", f"{what}: no result, or somebody not ready, {BACK_S:.0f} s after it was mended"))
        return
    said.append(f"{what}: work after {time.time() - began:.1f} s")


def _named(stand: Stand) -> Settings:
    assert stand.secured is not None
    return stand.secured


def _users(stand: Stand) -> tuple[Path, dict[str, str]]:
    """Folder of the passwords, and what stands there now."""
    folder = Path(_named(stand).kafka_users_dir)
    return folder, passwords(folder, users(_named(stand)))


def _grant(stand: Stand, known: dict[str, str], rights: list[Right]) -> None:
    ca = ensure_ca(stand.folder / "security")
    asyncio.run(grant(stack_security(ca).clients(stand.broker.inner), known, rights))


def _writes_ledger(right: Right) -> bool:
    return right[:3] == ("aos.compose", "topic", "aos.ledger") and right.operation == "Write"


inject_by(
    35, credentials, needs=SECURE, waits="the database's passwords: tests/stack/test_secure_database.py"
)
inject_by(
    36, certificates, needs=SECURE, waits="the database's certificate: tests/stack/test_secure_database.py"
)
