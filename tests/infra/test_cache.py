"""Entries by key: whole or absent, of the right model, within a limit."""

import os
from pathlib import Path

import pytest

from prlhf.infra.cache import ResultCache


@pytest.fixture
def cache(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "cache", 1000, "this")


def test_what_is_put_in_comes_out(cache: ResultCache) -> None:
    assert "abcd" not in cache
    assert cache.get("abcd") is None
    cache.put("abcd", b"entry")
    cache.put("abef", b"")
    assert "abcd" in cache
    assert (cache.get("abcd"), cache.get("abef")) == (b"entry", b"")
    cache.put("abcd", b"newer")
    assert cache.get("abcd") == b"newer"
    assert ResultCache(cache.root, 1000, "that").get("abcd") is None
    assert [path.name for path in sorted(cache.root.glob("*/*"))] == ["abcd-this", "abef-this"]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:3], lambda b: b"", lambda b: b + b"x"]
)
def test_damage_is_found(cache: ResultCache, damage, capsys: pytest.CaptureFixture[str]) -> None:
    cache.put("abcd", b"entry")
    path = cache.path("abcd")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("abcd") is None
    assert "abcd" not in cache
    assert capsys.readouterr().err == f"{path} is damaged: what it held is computed anew\n"


def test_the_least_recently_used_entries_are_dropped(cache: ResultCache) -> None:
    for age, key in enumerate(("aa", "bb", "cc", "dd")):
        cache.put(key, b"x" * 300)
        os.utime(cache.path(key), (1000 + age, 1000 + age))
    # What a killed process left counts, and goes, too.
    left = cache.root / "ee" / ".eeee-this.0123.partial"
    left.parent.mkdir()
    left.write_bytes(b"x" * 900)
    os.utime(left, (0, 0))
    assert cache.get("aa") is not None
    cache.trim()
    assert [key for key in ("aa", "bb", "cc", "dd") if key in cache] == ["aa", "cc", "dd"]
    assert not left.exists()
    cache.trim()
    assert "aa" in cache


def test_what_killed_processes_left_goes_even_where_there_is_room(cache: ResultCache) -> None:
    cache.put("abcd", b"entry")
    old, new = (cache.root / "ab" / f".abcd-this.{i}.partial" for i in range(2))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache.trim()
    assert (old.exists(), new.exists(), "abcd" in cache) == (False, True, True)


def test_a_cache_that_cannot_be_written_is_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ResultCache(tmp_path / "file", 1000, "this")
    cache.put("abcd", b"entry")
    assert cache.get("abcd") is None
    cache.trim()
    assert (tmp_path / "file").read_text() == "in the way"
