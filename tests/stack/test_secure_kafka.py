"""The secure stack, started once: a request goes its whole way, everybody may what the table says and nothing else, and
no secret is anywhere but in its own file."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from aos.agents.sdk.client import Client
from aos.agents.sdk.refusals import refusal
from aos.agents.sdk.service import Service
from aos.agents.sdk.work import Work
from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.codecs.topics import all_topics
from aos.infra.database import query
from aos.infra.local import LocalStack
from aos.infra.local.kafka import answers
from aos.infra.security.certificates import ensure_ca
from aos.infra.security.connections import security
from aos.infra.security.local import secure_broker
from aos.infra.up import Up
from tests.conftest import started
from tests.stack.exposed import Watched, in_files
from tests.stack.kafka_probes import Prober, forgeries, leak, visible
from tests.unit.given_rights import (
    GROUPS,
    OPERATIONS,
    OTHERS,
    READS_AND_WRITES,
    SETTINGS,
    expected,
    expected_on_group,
)

pytestmark = pytest.mark.stack
NOW = datetime.now(UTC)
TOKEN_KEY = "planted-token-key-0451"
NO_DATABASE = "none: these questions need no database"
TOPICS = [topic.name for topic in all_topics(SETTINGS.tenants)] + [f"aos.{name}" for name in OTHERS]


@dataclasses.dataclass
class Secure:
    """The stack with two services' and three tenants' users, and what was seen of it from outside."""

    up: Up
    folder: Path
    run_file: Path
    watched: Watched

    @property
    def settings(self) -> Settings:
        return self.up.settings

    def user(self, name: str) -> dict[str, Any]:
        """Arguments of an aiokafka client of a user."""
        return security(self.settings).named(f"aos.{name}").clients(self.settings.bootstrap)

    def secrets(self) -> dict[str, str]:
        """Every password and key there is, by its name."""
        users = Path(self.settings.kafka_users_dir)
        return {"token key": TOKEN_KEY, **{path.name: path.read_text() for path in users.iterdir()}}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    patch = pytest.MonkeyPatch()
    patch.setenv("AOS_RUN_FILE", str(folder / "run.json"))
    for name in ("AOS_BOOTSTRAP", "AOS_DATABASE_URL", "AOS_SECURITY_PROTOCOL"):
        patch.delenv(name, raising=False)
    settings = dataclasses.replace(SETTINGS, secure=True, secret=TOKEN_KEY)
    watched = Watched()
    up = Up(settings, announce=True)
    started(up.stack)  # skips, or fails where a stack is required
    try:
        with up:
            yield Secure(up, folder, folder / "run.json", watched)
    finally:
        patch.undo()
        watched.stop()


async def everything(args: dict[str, Any], topics: Iterable[str]) -> int:
    """How many records there are on these topics."""
    consumer = AIOKafkaConsumer(**args)
    await consumer.start()
    try:
        tps = [
            TopicPartition(topic, p) for topic in topics for p in consumer.partitions_for_topic(topic) or (0,)
        ]
        return sum((await consumer.end_offsets(tps)).values())
    finally:
        await consumer.stop()


async def test_a_request_goes_its_whole_way_and_everybody_finds_the_stack_by_who_they_are(
    secure: Secure,
) -> None:
    service = Service("shout")

    @service.agent("upper", capabilities=["uppercase"])
    async def upper(work: Work) -> str:
        return (work.text or "").upper()

    serving = asyncio.create_task(service.serve())
    async with asyncio.timeout(60), Client(tenant="acme") as acme, Client(tenant="acme.eu") as other:
        heard = asyncio.create_task(anext(other.results()))
        done = await acme.run(text="hello", require=["uppercase"], id="first", timeout=40)
        assert (done["status"], done["payload"], done["tenant"]) == ("ok", b"HELLO", "acme")
        await acme.send("aos.feedback", [{"id": "first", "score": 0.5}])
        assert not heard.done(), "nobody else hears of it"
        heard.cancel()
    rows: list[Any] = []
    async with asyncio.timeout(20):
        while rows != [("ok",)]:
            _, rows = query(secure.settings.database_url, "SELECT status FROM aos.tasks WHERE id = 'first'")
            await asyncio.sleep(0.2)
    env = {
        name: value
        for name, value in os.environ.items()
        if name in ("PATH", "HOME", "AOS_RUN_FILE", "AOS_CACHE")
    }
    asked = [sys.executable, "-m", "aos", "status", "-o", "json"]
    status = await asyncio.to_thread(
        subprocess.run, asked, capture_output=True, text=True, env=env, check=True
    )
    assert [row["members"] for row in json.loads(status.stdout)["processors"]] == [1] * 12
    service.stop()
    await serving


async def test_everybody_may_on_the_real_broker_what_the_table_says_and_nothing_else(
    secure: Secure, measured: Callable[[str], None]
) -> None:
    wrong, count = [], 0
    for user in READS_AND_WRITES:
        async with Prober(secure.user(user)) as prober:
            for operation in OPERATIONS:
                for topic, may in (await prober.topics(operation, TOPICS)).items():
                    count += 1
                    if may is not expected(user, topic.removeprefix("aos."), operation):
                        wrong.append(f"{user} {operation} {topic}: {may}")
            for group in GROUPS:
                for operation in ("Read", "Describe"):
                    count += 1
                    if await prober.group(operation, f"aos.{group}") is not expected_on_group(
                        user, group, operation
                    ):
                        wrong.append(f"{user} {operation} group {group}")
    measured(f"rights tried on the real broker: {count}, wrong: {len(wrong)}")
    assert wrong == []


def test_a_client_that_knows_nothing_of_aos_is_let_in_by_its_own_settings(secure: Secure) -> None:
    """As docs/security.md says, on another client's library and in the one group that the tenant has."""
    acme = security(secure.settings).named("aos.tenant.acme").librdkafka(secure.settings.bootstrap)
    told: list[Any] = []
    producer = confluent_kafka.Producer(acme)
    for topic in ("aos.feedback.acme", "aos.feedback.acme.eu"):
        producer.produce(
            topic, b'{"id": "nobody", "score": 0.5}', on_delivery=lambda error, _: told.append(error)
        )
    assert producer.flush(30) == 0
    assert sorted(error.code() if error else 0 for error in told) == [
        0,
        confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    ]
    for group, allowed in (("aos.tenant.acme", True), ("aos.tenant.default", False)):
        consumer = confluent_kafka.Consumer({**acme, "group.id": group, "auto.offset.reset": "earliest"})
        consumer.subscribe(["aos.results.acme"])
        found, ends = None, time.monotonic() + 20
        while found is None and time.monotonic() < ends:
            found = consumer.poll(0.5)
        consumer.close()
        assert found is not None
        refused = (
            found.error() and found.error().code() == confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED
        )
        assert bool(refused) is not allowed


async def forge(secure: Secure, count: int, seed: int) -> None:
    """So many requests of tenants and services for what is not theirs; nothing is told, nothing is done."""
    operator = secure.user("operator")
    leaks, of_each = [], count // 3
    for user in ("tenant.acme", "tenant.default", "service.shout"):
        mine = {name for text in READS_AND_WRITES[user] for name in text.split()}
        foreign = [topic for topic in TOPICS[: -len(OTHERS)] if topic.removeprefix("aos.") not in mine]
        groups = [f"aos.{group}" for group in READS_AND_WRITES if group != user]
        before = await everything(operator, quiet(foreign))
        async with Prober(secure.user(user)) as prober:
            assert await visible(prober) <= {f"aos.{name}" for name in (*mine, user)}
            for _, (what, request) in zip(range(of_each), forgeries(seed, foreign, groups), strict=False):
                found = leak(await prober.ask(request))
                if found:
                    leaks.append(f"{user} could {what}: {found}")
        assert leaks == []
        assert await everything(operator, quiet(foreign)) == before, "a forged record was written"


def quiet(topics: Iterable[str]) -> list[str]:
    """Those that nobody writes to while nobody asks for anything."""
    silent = ("requests", "results", "feedback", "observations", "agents", "outcomes", "calls", "controls", "settings",
              "processors", "tasks", "matches", "dead-letters")  # fmt: skip
    return [topic for topic in topics if topic.split(".")[1] in silent]


async def test_a_thousand_forged_requests_of_tenants_and_services_leak_nothing(secure: Secure) -> None:
    await forge(secure, 1_000, seed=1)


async def test_the_probes_see_a_leak_where_somebody_may_more(secure: Secure) -> None:
    """The same requests by the operator, who may read: without this, silence would prove nothing."""
    seen = set()
    async with Prober(secure.user("operator")) as prober:
        for _, (what, request) in zip(range(200), forgeries(3, ["aos.ledger"], ["aos.encode"]), strict=False):
            if what.startswith(("read", "see")) and leak(await prober.ask(request)):
                seen.add(what)
    assert {
        "read",
        "see where it ends",
        "see that it is there",
        "see its settings",
        "see their commits",
    } <= seen


@pytest.mark.long
async def test_ten_thousand_forged_requests_leak_nothing(secure: Secure) -> None:
    await forge(secure, 10_000, seed=2)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # aiokafka leaves the socket open
async def test_who_is_not_who_he_says_or_says_nothing_is_not_let_in(secure: Secure) -> None:
    good = secure.user("tenant.acme")
    for change, code in (
        ({"sasl_plain_password": "planted-wrong-password"}, "AOS5011"),
        ({"sasl_plain_username": "aos.tenant.default"}, "AOS5011"),
        ({"sasl_plain_username": "CN=aos-stack"}, "AOS5011"),
        ({"ssl_context": ssl.create_default_context()}, "AOS5011"),
    ):
        args = good | change
        client = AIOKafkaClient(**args)
        with pytest.raises(KafkaError) as caught:
            await client.bootstrap()
        await client.close()
        said = await asyncio.to_thread(refusal, caught.value, args)
        assert said is not None, change
        assert said.code == code
        assert "planted" not in f"{said}{caught.value}"
    port = int(secure.settings.bootstrap.rsplit(":")[-1])
    assert not answers(port), "in the clear"
    assert secure.up.stack.broker is not None
    inner = secure.up.stack.broker.inner
    assert not answers(int(inner.rsplit(":")[-1]), good["ssl_context"]), (
        "the stack's own door, without its certificate"
    )


async def test_what_is_forbidden_to_a_client_library_is_told_in_a_sentence(secure: Secure) -> None:
    args = secure.user("tenant.acme")
    producer = AIOKafkaProducer(**args)
    await producer.start()
    try:
        with pytest.raises(KafkaError) as caught:
            await producer.send_and_wait("aos.requests", b"{}")
    finally:
        await producer.stop()
    said = refusal(caught.value, args)
    assert said is not None
    assert (said.code, "aos.tenant.acme" in said.detail) == ("AOS5015", True)


async def test_a_service_without_a_user_is_told_what_to_do(secure: Secure) -> None:
    with pytest.raises(SettingsError) as caught:
        await Service("nobody-made-me").serve()
    assert "AOS_SERVICES" in caught.value.hint


async def test_no_secret_is_in_a_log_a_topic_a_status_or_a_command_line(
    secure: Secure, tmp_path: Path
) -> None:
    secrets = {**secure.secrets(), "wrong password": "planted-wrong-password"}
    data = secure.up.stack.data_dir
    own = ("security", "secret", "broker.pem", "postgres")  # postgres: the database's part is tested with it
    assert in_files(data, secrets, own) == []
    assert in_files(secure.folder, secrets, ()) == [], "the run file"
    assert not in_files(data / "security", secrets, ("users",))
    records = AIOKafkaConsumer(**secure.user("operator"), auto_offset_reset="earliest")
    await records.start()
    try:
        there = await records._client.fetch_all_metadata()
        names = [topic for topic in there.topics() if topic.startswith("aos.")]
        tps = [TopicPartition(topic, p) for topic in names for p in there.partitions_for_topic(topic)]
        records.assign(tps)
        ends, count = await records.end_offsets(tps), 0
        while any([await records.position(tp) < end for tp, end in ends.items()]):
            for batch in (await records.getmany(timeout_ms=200)).values():
                for record in batch:
                    count += 1
                    text = b"|".join(
                        (record.key or b"", record.value or b"", *(v for _, v in record.headers))
                    )
                    assert not [name for name, secret in secrets.items() if secret.encode() in text], (
                        record.topic
                    )
    finally:
        await records.stop()
    assert count > 10
    lines = secure.watched.seen
    assert any(b"kafka.Kafka" in line for line in lines)
    assert not [name for line in lines for name, secret in secrets.items() if secret.encode() in line]


def test_the_search_for_secrets_finds_one(secure: Secure, tmp_path: Path) -> None:
    (tmp_path / "worker.log").write_text(f"password={secure.secrets()['aos.encode']}")
    assert in_files(tmp_path, secure.secrets(), ()) == [f"aos.encode in {tmp_path / 'worker.log'}"]
    sleeping = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(9)", "planted-in-a-command-line"]
    )
    ends = time.monotonic() + 5
    while time.monotonic() < ends and not any(
        b"planted-in-a-command" in line for line in secure.watched.seen.copy()
    ):
        time.sleep(0.05)
    sleeping.kill()
    sleeping.wait()
    assert any(b"planted-in-a-command" in line for line in secure.watched.seen.copy())


def test_a_restart_rotates_the_certificate_and_who_is_no_longer_named_may_nothing(tmp_path: Path) -> None:
    """On a data folder that was open before; nobody needs a new password."""
    data = tmp_path / "data"
    with started(LocalStack(data, database_url=NO_DATABASE)):
        pass
    cert, _ = ensure_ca(data / "security").issue("aos-broker", client=True, now=NOW - timedelta(days=360))
    spent, rights, words = cert.read_bytes(), [], []
    with started(LocalStack(data, database_url=NO_DATABASE, secure=True)) as stack:
        assert stack.broker is not None
        assert stack.ca is not None
        assert cert.read_bytes() != spent
        for tenants in (("default", "acme"), ("default",)):
            settings = Settings(tenants=tenants, bootstrap=stack.bootstrap)
            found = secure_broker(settings, stack.broker, stack.ca)
            acme = security(found).named("aos.tenant.acme").clients(found.bootstrap)
            rights.append(asyncio.run(_may_write(acme)))
            words.append(acme["sasl_plain_password"])
    assert rights == [True, False]
    assert len(set(words)) == 1


async def _may_write(args: dict[str, Any]) -> bool:
    async with Prober(args) as prober:
        return (await prober.topics("Write", ["aos.requests.acme"]))["aos.requests.acme"]
