"""All settings, declared once: default, unit, range, meaning. `infra.settings` alone reads them from outside.

Steps get the frozen object through `Views.settings`; nobody mutates it. Those declared `live` may change at run time
(`streams.live`): only ones that row and journal processors read, whose decisions are written down. What a fold reads
must be the same whenever its log is read again, so it stays as it was at the start.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

from aos.codecs.errors import SettingsError

ALL, TENANT = "all", "tenant"  # `live`: may change at run time for all; for one tenant too
TEXT_BYTES_MAX = 128  # of a text that is set at run time: they are names


def setting(
    default: Any, doc: str, unit: str = "", low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field that knows its meaning, unit and range. Of a dict the range is that of its values."""
    return _field(default, {"doc": doc, "unit": unit, "low": low, "high": high, "decides": False, "live": ""})


def hidden(doc: str) -> Any:
    """The same for a text that nobody may see: it is left out wherever settings are shown."""
    found = {"doc": doc, "unit": "", "low": None, "high": None, "decides": False, "live": "", "secret": True}
    return field(default="", metadata=found, repr=False)


def decides(
    default: Any,
    doc: str,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    live: str = "",
) -> Any:
    """The same for a setting that shapes who does what, when, or what is learned of it: `fingerprint` covers it.

    `live`: `ALL` or `TENANT` if it may change at run time; never for what a fold reads.
    """
    return _field(
        default, {"doc": doc, "unit": unit, "low": low, "high": high, "decides": True, "live": live}
    )


def _field(default: Any, metadata: dict[str, Any]) -> Any:
    if isinstance(default, (tuple, dict)):
        return field(default_factory=lambda: default, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class Settings:
    """Environment name of a setting: AOS_ and its name in capitals."""

    # where
    bootstrap: str = setting("", "Kafka bootstrap servers, host:port,...; empty: the local stack's")
    database_url: str = hidden("PostgreSQL URL; empty: the local stack's")
    prefix: str = setting("", "Stands before every topic and consumer group")
    replication: int = setting(1, "Replication factor of the topics AOS creates", "replicas", 1, 9)
    partitions: int = setting(1, "Partitions of the task topics", "partitions", 1, 256)
    inbox_partitions: int = setting(4, "Partitions of a service's inbox: the most replicas that share its work",
                                    "partitions", 1, 64)  # fmt: skip
    tenants: tuple[str, ...] = setting(("default",), "Known tenants, comma separated")
    accept_loss: tuple[str, ...] = setting(
        (),
        "Topics whose missing messages are accepted, comma separated: who stands still for want of them goes on",
    )
    data_dir: str = setting(
        "", "Where the local stack keeps its data; empty: a private folder, removed at the end"
    )
    secret: str = hidden(
        "Key of the assignment tokens; empty: one made at first start, kept in the data folder"
    )
    # security (docs/security.md)
    secure: bool = setting(
        False, "Whether the local stack is secure: TLS, a user for everybody, no right that is not given"
    )
    services: tuple[str, ...] = setting(
        (), "Agent services that get a user of their own in a secure local stack, comma separated"
    )
    security_protocol: str = setting(
        "PLAINTEXT", "How Kafka is spoken to: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"
    )
    sasl_mechanism: str = setting("SCRAM-SHA-512", "SCRAM-SHA-512, SCRAM-SHA-256 or PLAIN")
    kafka_username: str = setting("", "User at Kafka")
    kafka_password: str = hidden("Password of that user")
    kafka_password_file: str = setting("", "File with that password, instead of the password")
    kafka_users_dir: str = setting(
        "", "Folder with a file for each user, its password: every processor is then a user of its own"
    )
    kafka_ca_file: str = setting("", "PEM file with the authorities to trust; empty: those of the system")
    kafka_cert_file: str = setting("", "PEM file with a client certificate, where Kafka asks for one")
    kafka_key_file: str = setting("", "PEM file with the key of the client certificate")
    allow_plaintext: bool = setting(
        False, "Whether to speak in the clear to servers that are not on loopback"
    )
    # edge
    gather_ms: int = setting(
        25,
        "Least time an edge gathers; longer while acknowledgements are slow or the machine is busy",
        "ms",
        0,
        1000,
    )
    gather_rows: int = setting(512, "Messages at which an edge gathers no longer", "messages", 1, 65_536)
    payload_bytes_max: int = setting(32_768, "Largest text and payload of a request or outcome", "bytes", 1)
    steps_max: int = setting(64, "Most steps of a workflow", "steps", 1, 1024)
    past_days: int = setting(7, "How old a client's event time may be", "days", 1)
    repeat_window_s: int = setting(600, "How long a repeated request id gets the same result", "s", 0)
    repeat_rows: int = setting(
        200_000, "Most finished requests remembered a partition for that", "requests", 0
    )
    # registry
    suspect_after_ms: int = decides(4_000, "Silence after which a replica is suspected", "ms", 100)
    gone_after_ms: int = decides(12_000, "Silence after which a replica is gone", "ms", 100)
    heartbeat_ms: int = setting(1_000, "How often a replica says that it lives", "ms", 50)
    trial_outcomes: int = decides(
        5, "Outcomes below which an agent is on trial (state learning)", "outcomes", 0
    )
    # match and compose
    candidates_max: int = decides(16, "Most candidates of a step", "agents", 1, 64, live=ALL)
    candidates_wanted: int = decides(
        3, "Candidates below which a filter is loosened", "agents", 1, 64, live=ALL
    )
    fallback_service: str = decides(
        "", "Service that answers what nobody is trusted with; empty: none", live=ALL
    )
    confidence_min: float = decides(
        0.0, "Best score below which the fallback is asked", "", 0, 1, live=TENANT
    )
    quality_min: float = decides(
        0.0, "Predicted quality below which a request is rejected", "", 0, 1, live=TENANT
    )
    match_waits_ms: tuple[int, ...] = decides((1000, 2000, 4000), "Waits before a step is matched anew", "ms")
    # supervise
    timeout_ms: int = decides(30_000, "How long one attempt may take", "ms", 10)
    attempts_max: int = decides(4, "Most attempts of a step", "attempts", 1, 32)
    retry_waits_ms: tuple[int, ...] = decides((2000, 4000, 8000), "Waits before the next attempt", "ms")
    retry_jitter: float = decides(0.1, "Share by which a wait varies", "", 0, 0.5)
    request_timeout_ms: int = decides(600_000, "When a request without deadline expires", "ms", 100)
    # quotas and overload; the edge writes them into each request's row, and supervise reads them there
    quota_requests_per_s: dict[str, float] = decides({}, "Requests a second of a tenant (* for every other one); "  # noqa: RUF009
                                                     "no limit when not named", "requests/s",
                                                     0.001, 1e9, live=TENANT)  # fmt: skip
    quota_bytes_per_s: dict[str, float] = decides({}, "Bytes of text and payload a second of a tenant (* for every "  # noqa: RUF009
                                                  "other one); no limit when not named", "bytes/s",
                                                  1, 1e12, live=TENANT)  # fmt: skip
    quota_in_flight: dict[str, int] = decides({}, "Requests of a tenant in flight at once (* for every other one), "  # noqa: RUF009
                                              "at least one a partition; no limit when not named", "requests",
                                              1, 1e9, live=TENANT)  # fmt: skip
    quota_burst_s: float = decides(2.0, "How many seconds' worth of a rate may come at once",
                                   "s", 0.001, 3600, live=TENANT)  # fmt: skip
    waiting_max: int = decides(200_000, "Steps that may wait for their first agent, a partition, before new requests "
                               "of priority 1 are shed; half of it for 2, a quarter for 3, never 0",
                               "steps", 4, 1e9, live=ALL)  # fmt: skip
    # allocate
    prefetch: float = decides(
        1.0, "Assignments an agent may hold, as a multiple of its capacity", "", 1, 8, live=ALL
    )
    trial_floor: float = decides(0.01, "Least chance of an agent on trial", "", 0, 0.05, live=TENANT)
    tenant_weights: dict[str, float] = decides({}, "Fair share of a tenant; 1 when not named",  # noqa: RUF009
                                               "", 0.001, 1000, live=TENANT)  # fmt: skip
    exploration: float = decides(1.0, "Factor on the exploration of every policy", "", 0.1, 4, live=TENANT)
    lane_age_ms: int = decides(20_000, "Waiting time worth one step of priority", "ms", 1, live=ALL)
    # learning
    sample_rows_per_s: int = decides(
        500, "Experiences a second that the river models learn from", "rows/s", 1
    )
    prior_strength: float = decides(
        8.0, "Outcomes the pooled prior of an agent and kind is worth", "outcomes", 0.1
    )
    discount: float = decides(
        0.995, "Weight an outcome keeps with each later one of its agent and kind", "", 0.5, 1
    )
    mine_every: int = decides(500, "New collaborations between two minings", "collaborations", 10)
    mine_window: int = decides(5_000, "Collaborations in a window", "collaborations", 50)
    optimise_every: int = decides(500, "Outcomes between two proposals", "outcomes", 10)
    # store
    bundle_ms: int = setting(300, "How long the store gathers rows for one transaction", "ms", 10, 5000)
    keep_days: int = setting(7, "Age at which chunks are dropped from the database", "days", 1)
    keep_bytes: int = setting(
        20_000_000_000, "Size at which the oldest chunks are dropped", "bytes", 1_000_000
    )
    store_payloads: bool = setting(False, "Whether payload bytes go to SQL")
    # shell
    commit_ms: int = setting(500, "Commit interval", "ms", 10)
    snapshot_s: float = setting(15.0, "Longest time between two snapshots", "s", 0.1)
    session_timeout_ms: int = setting(10_000, "Consumer group session time-out", "ms", 1000)

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_range(item, getattr(self, item.name))
        if self.gone_after_ms <= self.suspect_after_ms:
            raise SettingsError("AOS5003", "gone_after_ms must be larger than suspect_after_ms")
        if self.suspect_after_ms <= 2 * self.heartbeat_ms:
            raise SettingsError("AOS5003", "suspect_after_ms must be larger than two heartbeats")
        if "default" not in self.tenants:
            raise SettingsError("AOS5003", "tenants must hold default")


QUOTAS = ("quota_requests_per_s", "quota_bytes_per_s", "quota_in_flight")  # a dict by tenant each
EVERY_OTHER = "*"  # the key of a quota for tenants that are not named


def check_quota(settings: Settings, name: str, limits: dict[str, float]) -> None:
    """Refuse a quota for a tenant nobody knows, which would be no limit at all, and one that cannot be shared out.

    For whoever sets one: a worker that reads it takes it as it is, because others were started with other tenants.
    """
    unknown = sorted(set(limits) - {*settings.tenants, EVERY_OTHER})
    if unknown:
        raise SettingsError("AOS5003", f"{name} names {', '.join(unknown)}, which tenants does not")
    if name == "quota_in_flight" and min(limits.values(), default=settings.partitions) < settings.partitions:
        raise SettingsError("AOS5003", f"{name} must be at least partitions ({settings.partitions})")


_BY_NAME: dict[str, Field[Any]] = {item.name: item for item in fields(Settings)}
_TYPES = get_type_hints(Settings)
LIVE: dict[str, str] = {
    name: item.metadata["live"] for name, item in _BY_NAME.items() if item.metadata["live"]
}

_DICTS: dict[Any, type] = {dict[str, float]: float, dict[str, int]: int}
NUMBERS: dict[str, type] = {name: _DICTS[_TYPES[name]] for name in LIVE if _TYPES[name] in _DICTS}
"""Settings that are a number a tenant, with the number's type."""


def accepted(name: str, value: Any, tenant: str = "") -> Any:
    """A value for a change at run time, of one tenant if one is named; SettingsError says why it is refused.

    None is accepted: the value of the start again. A tenant's part of a dict (`tenant_weights`, quotas) is a number.
    """
    if name not in _BY_NAME:
        raise SettingsError("AOS5001", name)
    if name not in LIVE:
        raise SettingsError("AOS5006", f"{name} {_WHY_NOT[_BY_NAME[name].metadata['decides']]}")
    if tenant and LIVE[name] != TENANT:
        raise SettingsError("AOS5006", f"{name} is one for all tenants", "leave the tenant out")
    if value is None:
        return None
    kind = NUMBERS.get(name, _TYPES[name]) if tenant else _TYPES[name]
    made = _typed(name, value, kind)
    _check_range(_BY_NAME[name], made)
    return made


_WHY_NOT = {
    True: "is read by a processor that must decide alike when it reads its log again",
    False: "is read once, when AOS starts",
}


def _typed(name: str, value: Any, kind: Any) -> Any:
    """A JSON value as the setting's type; nothing is rounded, cut or guessed."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and number and isinstance(value, int):
        return value
    if kind is float and number:
        return float(value)
    if kind is str and isinstance(value, str) and len(value.encode()) <= TEXT_BYTES_MAX:
        return value
    if name in NUMBERS and kind == _TYPES[name] and isinstance(value, dict):
        return {str(key): _typed(name, each, NUMBERS[name]) for key, each in value.items()}
    raise SettingsError("AOS5002", f"{name}={value!r} is no {getattr(kind, '__name__', kind)}")


def _check_range(item: Field[Any], value: Any) -> None:
    low, high = item.metadata["low"], item.metadata["high"]
    for each in value.values() if isinstance(value, dict) else (value,):
        if not isinstance(each, (int, float)) or isinstance(each, bool):
            continue
        inside = math.isfinite(each) and (low is None or each >= low) and (high is None or each <= high)
        if not inside:
            raise SettingsError("AOS5002", f"{item.name}={each}, from {low} to {high}")


def fingerprint(settings: Settings) -> int:
    """crc32 of the settings that decide (`decides`): the same number for the same values, whatever else differs.

    Where AOS runs, its secret, what edges take and how much is kept are no part of it.
    """
    decided = [item.name for item in fields(settings) if item.metadata["decides"]]
    return zlib.crc32(repr([(name, _plain(getattr(settings, name))) for name in decided]).encode())


def _plain(value: Any) -> Any:
    """One spelling of equal values: 8 and 8.0, and weights in any order."""
    if isinstance(value, dict):
        return sorted((name, float(weight)) for name, weight in value.items())
    return float(value) if isinstance(value, (int, float)) else value
