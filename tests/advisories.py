"""Locked dependencies against a stated list of advisories. `python -m tests.advisories` checks, `--refresh` asks anew.

The list (tests/advisories.toml) says when, how and at which versions the packages of uv.lock were looked at. The check
fails on a version that an advisory is about, and as well when it could not check: no list, a list that is older than
DAYS_MAX, a package that is not in it or was looked at in another version. `--refresh` asks the registry that uv.lock
names about each locked version and writes the list only when every answer came.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
import urllib.request
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

LOCK = Path(__file__).parent.parent / "uv.lock"
LIST = Path(__file__).with_name("advisories.toml")
DAYS_MAX = 90
ANSWER_S = 30.0
ASKED = "the registry's own advisories of each locked version, by `python -m tests.advisories --refresh`"


class Unchecked(Exception):
    """The check could not be made: never to be taken for a good result."""


@dataclass(frozen=True, slots=True)
class Advisory:
    """What is known of one package. `affected`: version specifiers; `accepted`: why it does not hurt here."""

    id: str
    package: str
    affected: str
    says: str
    accepted: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """The list."""

    reviewed: date
    source: str
    packages: dict[str, str]
    advisories: tuple[Advisory, ...]


def locked(text: str) -> dict[str, str]:
    """Version by name of the packages of a lock that come from a registry; Unchecked when there is none to read."""
    try:
        packages = tomllib.loads(text)["package"]
        found = {each["name"]: each["version"] for each in packages if "registry" in each["source"]}
        foreign = [
            each["name"] for each in packages if not {"registry", "editable", "virtual"} & set(each["source"])
        ]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise Unchecked(f"the lock cannot be read: {error!r}") from error
    if not found or foreign:
        raise Unchecked(f"not from a registry: {foreign}" if foreign else "the lock holds no package")
    return found


def known(text: str) -> Known:
    """The list out of its text; Unchecked when it is not one."""
    try:
        found = tomllib.loads(text)
        advisories = tuple(Advisory(**each) for each in found.get("advisory", ()))
        for each in advisories:
            SpecifierSet(each.affected)
        listed = Known(found["reviewed"], found["source"], found["packages"], advisories)
    except (tomllib.TOMLDecodeError, KeyError, TypeError, InvalidSpecifier) as error:
        raise Unchecked(f"the list cannot be read: {error!r}") from error
    if type(listed.reviewed) is not date or not listed.source:
        raise Unchecked("the list does not say when and how it was reviewed")
    return listed


def check(lock: str, listed: str, today: date) -> list[str]:
    """Sentences about locked versions that somebody should not use; Unchecked when that cannot be told."""
    packages, found = locked(lock), known(listed)
    age = (today - found.reviewed).days
    if not 0 <= age <= DAYS_MAX:
        raise Unchecked(
            f"the list was reviewed {age} days ago, at most {DAYS_MAX}: `python -m tests.advisories --refresh`"
        )
    unseen = sorted(name for name, version in packages.items() if found.packages.get(name) != version)
    if unseen:
        raise Unchecked(f"the list knows nothing of the locked versions of {', '.join(unseen)}: refresh it")
    try:
        return [
            f"{each.package} {packages[each.package]}: {each.id}, {each.says}"
            for each in found.advisories
            if each.package in packages and not each.accepted and _affects(each, packages[each.package])
        ]
    except InvalidVersion as error:
        raise Unchecked(str(error)) from error


def _affects(advisory: Advisory, version: str) -> bool:
    return SpecifierSet(advisory.affected).contains(Version(version), prereleases=True)


def refreshed(lock: str, listed: str, today: date, ask: Any) -> str:
    """The list's new text: `ask(name, version)` gives what the registry says of one release."""
    packages, old = locked(lock), known(listed)
    advisories = {(each.package, each.id): each for each in old.advisories}
    for name, version in sorted(packages.items()):
        for each in ask(name, version)["vulnerabilities"]:
            if each.get("withdrawn"):
                continue
            fixed = ", ".join(each.get("fixed_in") or ()) or "no release yet"
            says = " ".join(str(each.get("summary") or each.get("details") or "").split())[:160]
            before = advisories.get((name, each["id"]))
            advisories[name, each["id"]] = Advisory(
                each["id"],
                name,
                f"=={version}",
                f"{says} (fixed in {fixed})",
                before.accepted if before else "",
            )
    return text_of(Known(today, ASKED, packages, tuple(advisories[key] for key in sorted(advisories))))


def text_of(found: Known) -> str:
    """The list as TOML."""
    lines = ["# What is known of the locked dependencies; read and written by tests/advisories.py.", ""]
    lines += [f"reviewed = {found.reviewed}", f"source = {json.dumps(found.source)}", "", "[packages]"]
    lines += [
        f"{json.dumps(name)} = {json.dumps(version)}" for name, version in sorted(found.packages.items())
    ]
    for each in found.advisories:
        lines += ["", "[[advisory]]"]
        fields = {"id": each.id, "package": each.package, "affected": each.affected, "says": each.says}
        fields |= {"accepted": each.accepted} if each.accepted else {}
        lines += [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(lines) + "\n"


def registry_of(lock: str) -> str:
    """Where the lock's packages come from; Unchecked unless that is one registry."""
    named = {each["source"].get("registry") for each in tomllib.loads(lock)["package"]} - {None}
    if len(named) != 1:
        raise Unchecked(f"packages come from {len(named)} registries")
    parts = urlsplit(str(named.pop()))
    return f"{parts.scheme}://{parts.netloc}"


def asked(registry: str, name: str, version: str) -> dict[str, Any]:
    """What the registry says of one release; Unchecked when it does not say it."""
    try:
        with urllib.request.urlopen(f"{registry}/pypi/{name}/{version}/json", timeout=ANSWER_S) as answer:
            found: dict[str, Any] = json.load(answer)
            if not isinstance(found["vulnerabilities"], list):
                raise TypeError("vulnerabilities is no list")
            return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unchecked(f"{name} {version} could not be asked about: {error!r}") from error


def main() -> int:
    """0 nothing found, 1 something found, 2 not checked."""
    parser = argparse.ArgumentParser(prog="python -m tests.advisories", description=__doc__)
    parser.add_argument(
        "--refresh", action="store_true", help="ask the lock's registry and write the list anew"
    )
    try:
        if parser.parse_args().refresh:
            lock = LOCK.read_text()
            registry = registry_of(lock)
            new = refreshed(
                lock, LIST.read_text(), date.today(), lambda name, version: asked(registry, name, version)
            )
            LIST.write_text(new)
        found = check(LOCK.read_text(), LIST.read_text(), date.today())
    except (Unchecked, OSError) as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 2
    print("\n".join(found) or "no locked version is in an advisory of the list")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
