"""Reads the settings: flag beats environment (AOS_*) beats file (aos.toml) beats default. The only reader of both."""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from aos.codecs.errors import SettingsError
from aos.codecs.settings import QUOTAS, Settings, check_quota

FILE = "aos.toml"
# environment names that are no settings: they steer the local stack, tests and the SDK
OTHER_NAMES = frozenset(
    {
        "AOS_CACHE", "AOS_RUN_FILE", "AOS_REQUIRE_STACK", "AOS_REQUIRE_BROKER", "AOS_SETTINGS_FILE", "AOS_LOG_LEVEL",
        "AOS_TEST_BOOTSTRAP", "AOS_TEST_DATABASE_URL", "AOS_FAULT",
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """A setting with where it comes from: default, file, environment or flag."""

    name: str
    value: Any
    origin: str


def load(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
    """The settings in force; SettingsError for unknown names and bad values."""
    found = Settings(
        **{item.name: item.value for item in origins(flags, environ) if item.origin != "default"}
    )
    for name in QUOTAS:
        check_quota(found, name, getattr(found, name))
    if found.database_url:
        from aos.infra.database import check_url  # SQL's client, only for who names a server

        check_url(found.database_url, allow_plaintext=found.allow_plaintext)
    return found


def origins(flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> list[Origin]:
    """Every setting with its origin, in the order of declaration."""
    environ = os.environ if environ is None else environ
    file, path = _file(environ)
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    env = _environment(environ)
    names = {field.name for field in dataclasses.fields(Settings)}
    for source, where in ((given, "flag"), (env, "environment"), (file, path)):
        for name in source:
            if name not in names:
                raise SettingsError("AOS5001", f"{name} ({where})")
    defaults = Settings()
    found = []
    for field in dataclasses.fields(Settings):
        for source, where in ((given, "flag"), (env, "environment"), (file, path)):
            if field.name in source:
                found.append(Origin(field.name, convert(field.name, source[field.name]), where))
                break
        else:
            found.append(Origin(field.name, getattr(defaults, field.name), "default"))
    return found


def convert(name: str, value: Any) -> Any:
    """A text or TOML value as the setting's type."""
    kind = get_type_hints(Settings)[name]
    try:
        if kind is bool:
            return value if isinstance(value, bool) else _bool(str(value))
        if kind in (int, float, str):
            return kind(value)
        parts = value.split(",") if isinstance(value, str) and not value.startswith("{") else value
        if kind in (dict[str, float], dict[str, int]):
            pairs: Any = json.loads(parts) if isinstance(parts, str) else parts
            number = get_args(kind)[1]
            if number is int and any(int(each) != float(each) for each in pairs.values()):
                raise ValueError("not whole numbers")
            return {str(key): number(each) for key, each in pairs.items()}
        item = int if kind == tuple[int, ...] else str
        return tuple(item(part.strip() if isinstance(part, str) else part) for part in parts if part != "")
    except (TypeError, ValueError, AttributeError) as error:
        raise SettingsError("AOS5002", f"{name}={value!r}: {error}") from error


def environment(settings: Settings) -> dict[str, str]:
    """What a child process needs in its environment to see the same settings."""
    found = {}
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        if value == getattr(_DEFAULTS, field.name):
            continue
        if isinstance(value, tuple):
            value = ",".join(map(str, value))
        found[f"AOS_{field.name.upper()}"] = json.dumps(value) if isinstance(value, dict) else str(value)
    return found


_DEFAULTS = Settings()


def _bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("not a yes or no")


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name[4:].lower(): value
        for name, value in environ.items()
        if name.startswith("AOS_") and name not in OTHER_NAMES
    }


def _file(environ: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    path = Path(environ.get("AOS_SETTINGS_FILE", FILE))
    if not path.exists():
        if "AOS_SETTINGS_FILE" in environ:
            raise SettingsError("AOS5001", f"the file {path} is not there", "correct AOS_SETTINGS_FILE")
        return {}, str(path)
    try:
        return tomllib.loads(path.read_text()), str(path)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError("AOS5002", f"{path}: {error}") from error
