"""Write constraints.txt: the exact version of everything that prlhf and its tests pull in.

    python tools/pin_versions.py          pin what is installed in this environment
    python tools/pin_versions.py --check  only say where pyproject.toml and constraints.txt disagree

The pins are those of the running environment, limited to what pyproject.toml needs, directly or
not: other packages that happen to be installed are left out. To move to newer versions, install
them, run the tests, and run this.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
CONSTRAINTS = ROOT / "constraints.txt"
UNPINNED = {"qlora"}
"""Extras for machines with a GPU: where versions are pinned they are not installed."""

HEADER = """\
# Written by tools/pin_versions.py: edit pyproject.toml instead.
# `pip install -c constraints.txt -e '.[dev]'` installs these versions and no others.
"""


def requirements(pyproject: Path = PYPROJECT) -> list[Requirement]:
    """What pyproject.toml asks for, with its extras but those of `UNPINNED`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    parts = [lines for name, lines in extras.items() if name not in UNPINNED]
    return [Requirement(line) for part in (project["dependencies"], *parts) for line in part]


def installed(wanted: Iterable[Requirement]) -> dict[str, Version]:
    """Canonical name -> installed version of the requirements and all that they require in turn.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    found: dict[str, Version] = {}
    waiting = [(requirement, "") for requirement in wanted]
    done: set[tuple[str, str]] = set()
    while waiting:
        requirement, by_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": by_extra}):
            continue
        name = canonicalize_name(requirement.name)
        package = distribution(requirement.name)
        found[name] = Version(package.version)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done:
                done.add((name, extra))
                waiting += [(Requirement(line), extra) for line in package.requires or ()]
    return found


def render(versions: dict[str, Version]) -> str:
    """The text of constraints.txt.

    Local versions (2.13.0+cpu) are cut to the public one, which any build of it satisfies.
    """
    lines = [f"{name}=={version.public}\n" for name, version in sorted(versions.items())]
    return HEADER + "".join(lines)


def pins(text: str) -> Iterator[tuple[str, Version]]:
    """The name and version of each line of constraints.txt."""
    for line in text.splitlines():
        name, equals, version = line.partition("==")
        if equals and not line.startswith("#"):
            yield canonicalize_name(name), Version(version)


def disagreements(wanted: Iterable[Requirement], pinned: dict[str, Version]) -> list[str]:
    """Requirements without a pin that meets them, in words."""
    found = []
    for requirement in wanted:
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement}: not pinned in {CONSTRAINTS.name}")
        elif version not in requirement.specifier:
            found.append(f"{requirement}: pinned to {version} in {CONSTRAINTS.name}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a mismatch")
    if parser.parse_args().check:
        pinned = dict(pins(CONSTRAINTS.read_text(encoding="utf-8")))
        found = disagreements(requirements(), pinned)
        for line in found:
            print(line)
        return int(bool(found))
    try:
        versions = installed(requirements())
    except PackageNotFoundError as error:
        print(f"{error.name} is not installed: run `make setup-dev` first", file=sys.stderr)
        return 1
    CONSTRAINTS.write_text(render(versions), encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(versions)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
