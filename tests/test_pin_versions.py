"""constraints.txt pins what pyproject.toml asks for."""

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pin_versions


def test_every_requirement_has_a_pin_that_meets_it():
    """`make lock` mends this."""
    pinned = dict(pin_versions.pins(pin_versions.CONSTRAINTS.read_text(encoding="utf-8")))
    assert pin_versions.disagreements(pin_versions.requirements(), pinned) == []


def test_what_is_missing_or_too_old_is_named():
    wanted = [Requirement("Some_Thing>=2,<3"), Requirement("other"), Requirement("good==1.*")]
    pinned = {"some-thing": Version("1.9"), "good": Version("1.4")}
    assert pin_versions.disagreements(wanted, pinned) == [
        "Some_Thing<3,>=2: pinned to 1.9 in constraints.txt",
        "other: not pinned in constraints.txt",
    ]


def test_requirements_are_followed_to_their_end():
    found = pin_versions.installed(
        [Requirement("pytest"), Requirement("absent; python_version<'3'")]
    )
    assert {"pytest", "pluggy", "iniconfig", "packaging"} <= found.keys()
    assert "absent" not in found


def test_what_is_not_installed_is_an_error():
    with pytest.raises(pin_versions.PackageNotFoundError):
        pin_versions.installed([Requirement("no-such-package-here")])


def test_pins_survive_writing_and_builds_are_not_pinned():
    text = pin_versions.render({"torch": Version("2.13.0+cpu"), "a-b": Version("1.0")})
    assert text.endswith("a-b==1.0\ntorch==2.13.0\n")
    assert dict(pin_versions.pins(text)) == {"a-b": Version("1.0"), "torch": Version("2.13.0")}
