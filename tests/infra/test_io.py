"""Files appear whole or not at all; tables and hashes come back as they went in."""

import errno
import itertools
import json
import math
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prlhf.data.ids import content_hash
from prlhf.infra.errors import UserError, UserErrors
from prlhf.infra.io import (
    atomic_path,
    read_json,
    read_parquet,
    write_json,
    write_parquet,
    write_text,
)


class Stop(BaseException):
    """Like a Ctrl-C: not an Exception."""


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_whole(tmp_path):
    target = tmp_path / "new" / "sub" / "table.csv"
    with atomic_path(target) as partial:
        assert partial.parent == target.parent  # the rename must not cross file systems
        assert partial.suffix == ".csv"  # writers that go by the suffix work
        partial.write_text("a,b\n")
        assert not target.exists()
    assert target.read_text() == "a,b\n"
    assert names(target.parent) == ["table.csv"]


@pytest.mark.parametrize("error", [ValueError, Stop])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as partial:
        partial.write_text("half of the n")
        raise error
    assert target.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_directory_replaces_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale.bin").write_text("old")
    with atomic_path(target, directory=True) as partial:
        (partial / "nested").mkdir()
        (partial / "nested" / "new.bin").write_text("new")
        assert names(target) == ["stale.bin"]
    assert names(target) == ["nested"]
    assert (target / "nested" / "new.bin").read_text() == "new"
    assert names(tmp_path) == ["model"]


def test_a_failed_directory_leaves_the_old_one(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights.bin").write_text("old")
    with pytest.raises(Stop), atomic_path(target, directory=True) as partial:
        (partial / "weights.bin").write_text("half")
        raise Stop
    assert (target / "weights.bin").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_the_old_directory_comes_back_when_the_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "weights.bin").write_text("old")
    rename = Path.rename

    def failing(self, to):
        if self.suffix != ".old" and Path(to) == target:
            raise OSError("cannot rename")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)
    with (
        pytest.raises(OSError, match="cannot rename"),
        atomic_path(target, directory=True) as partial,
    ):
        (partial / "weights.bin").write_text("new")
    assert (target / "weights.bin").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_files_and_directories_replace_each_other(tmp_path):
    target = tmp_path / "thing"
    target.write_text("a file")
    with atomic_path(target, directory=True) as partial:
        (partial / "inside").write_text("x")
    assert names(target) == ["inside"]
    write_text(target, "a file again\n")
    assert target.read_text() == "a file again\n"


def test_a_linked_file_is_replaced_not_written_through(tmp_path):
    """DVC may link outputs to its cache: writing through the link would corrupt the cache."""
    cached = tmp_path / "cached"
    cached.write_text("old")
    os.link(cached, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(cached)
    write_text(tmp_path / "hard", "new")
    write_text(tmp_path / "soft", "new")
    assert cached.read_text() == "old"
    assert (tmp_path / "hard").read_text() == (tmp_path / "soft").read_text() == "new"


def test_json_is_sorted_and_plain(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, {"b": np.float32(0.5), "a": [np.int64(3), "é"], "c": np.array([1, 2])})
    assert path.read_text(encoding="utf-8") == (
        '{\n  "a": [\n    3,\n    "é"\n  ],\n  "b": 0.5,\n  "c": [\n    1,\n    2\n  ]\n}\n'
    )
    assert read_json(path) == {"a": [3, "é"], "b": 0.5, "c": [1, 2]}


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan")])
def test_json_refuses_numbers_it_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "m.json", {"x": value})
    assert names(tmp_path) == []


def test_a_bad_json_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "m.json"
    path.write_text('{\n  "a": 1,\n  b\n}')
    with pytest.raises(UserError) as caught:
        read_json(path)
    assert str(caught.value).startswith(f"{path}:3: is not JSON")


@pytest.mark.parametrize("reader", [read_json, read_parquet])
def test_a_missing_file_is_named(tmp_path, reader):
    with pytest.raises(UserError) as caught:
        reader(tmp_path / "absent")
    assert str(caught.value) == (
        f"{tmp_path / 'absent'}: no such file (`dvc repro` makes what is missing)"
    )


def test_a_table_comes_back_as_it_went_in(tmp_path):
    path = tmp_path / "t.parquet"
    table = pd.DataFrame(
        {"user": ["a", None], "n": np.array([1, 2], dtype="int64"), "p": [0.1, 0.2]}, index=[5, 9]
    )
    write_parquet(path, table)
    pd.testing.assert_frame_equal(read_parquet(path), table.reset_index(drop=True))
    assert list(read_parquet(path, ["p", "user"]).columns) == ["p", "user"]


def test_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"x": np.arange(1000) / 7, "s": [str(i) for i in range(1000)]})
    for name in ("a", "b"):
        write_parquet(tmp_path / name, table.copy())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_lacking_column_or_a_broken_table_is_named(tmp_path):
    path = tmp_path / "t.parquet"
    write_parquet(path, pd.DataFrame({"x": [1]}))
    with pytest.raises(UserError, match="has no column y, z"):
        read_parquet(path, ["x", "y", "z"])
    path.write_bytes(b"not a table at all")
    with pytest.raises(UserError, match="is not a readable Parquet file"):
        read_parquet(path)


def test_hashes_are_stable_across_versions():
    """Pair ids stand in files that outlive a release: this value must never change."""
    assert content_hash("user", "prompt") == "924f3e3e94588a8a"
    assert content_hash("\ud800") != content_hash("\ud801")


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_hashes_tell_sequences_apart(one, other):
    assert (content_hash(*one) == content_hash(*other)) == (one == other)


@pytest.mark.parametrize(("one", "other"), [(("ab", "c"), ("a", "bc")), ((), ("",))])
def test_hashes_keep_parts_apart(one, other):
    assert content_hash(*one) != content_hash(*other)


def test_user_errors_are_one_line_each_and_survive_pickling():
    error = UserError("is no\nnumber", where=Path("a.yaml"), fix="write 1")
    both = UserErrors([error, UserError("second")])
    assert str(error) == "a.yaml: is no number (write 1)"
    assert both.lines() == ["a.yaml: is no number (write 1)", "second"]
    for one in (error, both):
        assert str(pickle.loads(pickle.dumps(one))) == str(one)


def test_json_written_is_what_json_reads(tmp_path):
    value = {"ü": [None, True, 1.25, {"x": "\u2028"}]}
    write_json(tmp_path / "v.json", value)
    assert json.loads((tmp_path / "v.json").read_bytes()) == value


def left_behind(path: Path, *, age: float = 0.0, directory: bool = False) -> Path:
    """What a killed process left."""
    if directory:
        path.mkdir()
        (path / "features").write_bytes(b"half")
    else:
        path.write_bytes(b"half")
    then = time.time() - age
    for each in [*path.rglob("*"), path]:
        os.utime(each, (then, then))
    return path


def test_what_killed_processes_left_goes_when_there_is_something_to_write(tmp_path):
    left_behind(tmp_path / ".table.1.partial.json", age=60)
    left_behind(tmp_path / ".table.2.partial.json.old", age=60, directory=True)
    other = left_behind(tmp_path / ".x.3.partial.json", age=60)
    write_json(tmp_path / "table.json", {})
    assert names(tmp_path) == [other.name, "table.json"]

    left_behind(tmp_path / ".reference.1.partial", age=60, directory=True)
    left_behind(tmp_path / ".reference.2.partial.old", age=60, directory=True)
    with atomic_path(tmp_path / "reference", directory=True):
        pass
    assert names(tmp_path) == [other.name, "reference", "table.json"]


def test_what_a_living_process_writes_to_is_left_alone(tmp_path):
    target = tmp_path / "reference"
    for directory in (True, False):
        with atomic_path(target, directory=directory) as mine:
            os.utime(mine, (0, 0))
            with atomic_path(target, directory=directory):
                assert mine.exists()
            assert mine.exists()
    assert names(tmp_path) == ["reference"]


def test_where_there_are_no_locks_only_age_tells(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr("prlhf.infra.io.fcntl.flock", unsupported)
    left_behind(tmp_path / ".reference.1.partial", age=2 * 86400, directory=True)
    maybe = left_behind(tmp_path / ".reference.2.partial", age=3600, directory=True)
    os.utime(maybe, (0, 0))  # what is in it is younger
    with atomic_path(tmp_path / "reference", directory=True):
        pass
    assert names(tmp_path) == [maybe.name, "reference"]


def test_sigkill_at_any_moment_leaves_the_old_or_the_new(tmp_path):
    """A file of one letter, over and over: never one of two, of none, or half of it."""
    path = tmp_path / "file"
    write_text(path, "a" * 100_000)
    for pause in np.random.default_rng(1).uniform(0, 0.03, 12):
        child = os.fork()
        if child == 0:
            for letter in itertools.cycle("bcd"):
                write_text(path, letter * 100_000)
        time.sleep(pause)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = path.read_text()
        assert found == found[0] * 100_000
    for left in tmp_path.glob(".*"):
        os.utime(left, (0, 0))
    write_text(path, "z")
    assert names(tmp_path) == ["file"]
