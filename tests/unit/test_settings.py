"""Settings: flag beats environment beats file beats default; what is unknown or impossible is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from aos.codecs.errors import SettingsError
from aos.codecs.settings import Settings
from aos.infra.settings import environment, load, origins


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "aos.toml"
    file.write_text("partitions = 2\ngather_ms = 5\ntimeout_ms = 1000\n")
    environ = {"AOS_SETTINGS_FILE": str(file), "AOS_PARTITIONS": "3", "AOS_GATHER_MS": "6"}
    found = load({"gather_ms": 7}, environ)
    assert (found.gather_ms, found.partitions, found.timeout_ms, found.keep_days) == (7, 3, 1000, 7)
    said = {item.name: item.origin for item in origins({"gather_ms": 7}, environ)}
    assert said["gather_ms"] == "flag"
    assert said["partitions"] == "environment"
    assert said["timeout_ms"] == str(file)
    assert said["keep_days"] == "default"


@pytest.mark.parametrize(
    ("environ", "code"),
    [
        ({"AOS_PARTITION": "3"}, "AOS5001"),
        ({"AOS_PARTITIONS": "many"}, "AOS5002"),
        ({"AOS_PARTITIONS": "0"}, "AOS5002"),
        ({"AOS_STORE_PAYLOADS": "perhaps"}, "AOS5002"),
        ({"AOS_GONE_AFTER_MS": "3000"}, "AOS5003"),
        ({"AOS_TENANTS": "acme"}, "AOS5003"),
        ({"AOS_SETTINGS_FILE": "/nowhere/aos.toml"}, "AOS5001"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(environ: dict[str, str], code: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({}, environ)
    assert caught.value.code == code


def test_lists_and_weights_are_read_from_text() -> None:
    environ = {
        "AOS_TENANTS": "default, acme",
        "AOS_RETRY_WAITS_MS": "10,20",
        "AOS_TENANT_WEIGHTS": '{"acme": 2}',
        "AOS_STORE_PAYLOADS": "yes",
    }
    found = load({}, environ)
    assert found.tenants == ("default", "acme")
    assert found.retry_waits_ms == (10, 20)
    assert found.tenant_weights == {"acme": 2.0}
    assert found.store_payloads is True


@pytest.mark.parametrize(
    ("quota", "value"),
    [
        ("QUOTA_REQUESTS_PER_S", '{"acne": 1}'),
        ("QUOTA_IN_FLIGHT", '{"acme": 1}'),
        ("QUOTA_IN_FLIGHT", '{"*": 1}'),
    ],
)
def test_a_quota_of_nobody_or_less_than_one_a_partition_is_refused_at_the_start(
    quota: str, value: str
) -> None:
    environ = {"AOS_TENANTS": "default,acme", "AOS_PARTITIONS": "2"}
    with pytest.raises(SettingsError) as caught:
        load({}, environ | {f"AOS_{quota}": value})
    assert caught.value.code == "AOS5003"
    assert load({}, environ | {"AOS_QUOTA_IN_FLIGHT": '{"acme": 2}'}).quota_in_flight == {"acme": 2}


def test_a_child_sees_the_same_settings() -> None:
    settings = Settings(
        partitions=4,
        tenants=("default", "a"),
        tenant_weights={"a": 0.5},
        quota_in_flight={"a": 4, "*": 9},
        quota_bytes_per_s={"a": 1e6},
        secret="s",
        store_payloads=True,
        prefix="x.",
    )
    assert load({}, environment(settings)) == settings


def test_a_file_that_is_no_toml_is_told(tmp_path: Path) -> None:
    file = tmp_path / "aos.toml"
    file.write_text("partitions: 2")
    with pytest.raises(SettingsError) as caught:
        load({}, {"AOS_SETTINGS_FILE": str(file)})
    assert caught.value.code == "AOS5002"
