"""How DVC is started, and how its failures are told."""

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from dvc.config import Config
from hypothesis import given, settings
from hypothesis import strategies as st

from little_project import run
from prlhf.infra.errors import UserError
from prlhf.project.dvc import (
    check_out,
    configure,
    ending,
    environment,
    failure,
    git,
    repository,
)
from prlhf.project.pipeline import open_project, require_git

DVC = "ERROR: failed to reproduce 'a': failed to run: x, exited with 2"


@pytest.mark.parametrize(
    ("lines", "line"),
    [
        (["Running stage 'a':", "error: f:3: bad (mend it)", DVC], "f:3: bad (mend it)"),
        (["error: one", "error: two", "error: three", DVC], "one (and 2 more, see the log)"),
        (["Running stage 'a':", "> x", "Killed", "ERROR: failed"], "a: failed: Killed"),
        (
            ["> x", "ValueError: boom", DVC],
            "a: failed to reproduce 'a': failed to run: x, exited with 2: ValueError: boom",
        ),
        (
            ["> x", "Loading", "ERROR: failed to reproduce 'a': failed to run: x, exited with -9"],
            "a: was ended by SIGKILL, which is what the system does when memory runs out: Loading",
        ),
        (
            ["> x | y", "ERROR: failed to reproduce 'a': failed to run: x | y, exited with 139"],
            "a: was ended by SIGSEGV",
        ),
        ([], "a: dvc failed and said nothing"),
    ],
)
def test_a_failure_is_the_stages_own_line_or_its_last(lines, line):
    assert failure(lines, "a") == line
    assert failure(lines) == line.removeprefix("a: ")


def test_a_dvc_that_was_killed_cannot_say_so_itself():
    lines = ["Running stage 'a':", "> x"]
    assert failure(lines, "a", status=143) == "a: dvc was ended by SIGTERM"
    assert failure([*lines, DVC], "a", status=255).startswith("a: failed to reproduce 'a': ")


@given(st.integers(-64, 255))
def test_an_ending_names_the_signal_or_the_status(status):
    number = -status if status < 0 else status - 128
    known = {each.value: each.name for each in signal.Signals}
    told = f"was ended by {known[number]}" if number in known else f"exited with {status}"
    assert ending(status).startswith(told)


@pytest.fixture
def repo(isolated, tmp_path):
    """A repository with a commit."""
    path = tmp_path / "project"
    path.mkdir()
    for command in (
        ("init", "--quiet"),
        ("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "--allow-empty", "-qm", "x"),
    ):
        run(path, "git", *command)
    return path


@pytest.mark.parametrize("ask", [repository, lambda root: git(root, "ls-files")])
def test_what_git_refuses_is_told_with_its_way_out(repo, monkeypatch, ask):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UserError) as caught:
        ask(repo)
    assert "detected dubious ownership in repository at" in caught.value.problem
    assert caught.value.fix == (
        f"if you trust its owner: `git config --global --add safe.directory {repo}`"
    )


def test_a_machine_without_git_is_told_from_a_project_without_it(repo, tmp_path, monkeypatch):
    assert repository(repo)[0] == repo
    with pytest.raises(UserError, match="the project is not under Git"):
        repository(tmp_path)
    run(tmp_path, "git", "init", "--quiet")
    with pytest.raises(UserError, match="there is no commit yet"):
        repository(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="Git is not installed"):
        repository(repo)


def test_a_command_that_needs_revisions_says_why_there_are_none(ran, monkeypatch):
    with open_project(ran.path) as project:
        require_git(project, "prlhf x")
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
        with pytest.raises(UserError, match=r"^prlhf x: git rev-parse: detected dubious ownership"):
            require_git(project, "prlhf x")


def test_dvc_can_be_told_to_do_without_git(little):
    little.dvc("config", "--local", "core.no_scm", "true")
    with open_project(little.path) as project, pytest.raises(UserError) as caught:
        require_git(project, "prlhf x")
    assert str(caught.value) == (
        "prlhf x: DVC is told to do without Git (`dvc config --local --unset core.no_scm`)"
    )


ODD = st.text(st.sampled_from("a $%(){x}s~'\"#,;=[]\\\té\u200b-*"), min_size=1, max_size=12)


@settings(max_examples=12, deadline=None)
@given(ODD)
def test_copies_of_a_project_work_whatever_its_path(isolated, name):
    with tempfile.TemporaryDirectory() as directory:
        root = Path(os.path.realpath(directory)) / name
        (root / ".dvc").mkdir(parents=True)
        (root / "file").write_text("1")
        os.close(os.open(os.fsencode(root) + b"/caf\xe9", os.O_CREAT))
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        run(root, "git", "init", "--quiet")
        run(root, "git", "add", "file")
        run(root, "git", *who, "commit", "--quiet", "--message", "x")
        top, head = repository(root)
        assert top == root
        assert "caf\udce9" in git(root, "ls-files", "--others", "-z")
        copy = root / ".dvc/tmp/flows/key"
        check_out(top, copy, head)
        assert (copy / "file").read_text() == "1"
        (copy / ".dvc").mkdir()
        configure(root, copy, root / ".dvc/cache")
        config = Config(dvc_dir=str(copy / ".dvc"))
        assert Path(config["cache"]["dir"]) == root / ".dvc/cache"


def test_commands_find_this_environment_and_the_code_of_a_copy(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/elsewhere")
    monkeypatch.setenv("PYTHONPATH", "/others")
    for name in ("DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.setenv(name, "of another run")
    found = environment(tmp_path)
    assert found["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/elsewhere"
    assert found["PYTHONPATH"] == "/others"
    assert not any(name.startswith("DVC_") and "of another" in found[name] for name in found)
    (tmp_path / "src").mkdir()
    assert environment(tmp_path)["PYTHONPATH"] == f"{tmp_path / 'src'}{os.pathsep}/others"
    monkeypatch.delenv("PYTHONPATH")
    assert environment(tmp_path)["PYTHONPATH"] == str(tmp_path / "src")
