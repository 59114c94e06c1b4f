"""`prlhf lock check`: what makes dvc.lock stale shows in a fresh clone, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from ruamel.yaml import YAML

from little_project import Little, run
from prlhf import cli
from prlhf.infra.errors import UserError
from prlhf.project import lock


def stale(little: Little) -> dict[str, str]:
    """Stage -> why it is stale, as `prlhf lock check` has it."""
    try:
        lock.check(little.path)
    except UserError as error:
        *lines, last = error.lines()
    else:
        return {}
    found = dict(line.removeprefix("dvc.lock: ").split(" is stale: ") for line in lines)
    assert last.startswith(f"dvc.lock: does not record {len(lines)} of 6 stages as they are (run")
    return found


def edit_lock(little: Little, change) -> None:
    yaml = YAML()
    document = yaml.load(little / "dvc.lock")
    change(document["stages"])
    yaml.dump(document, little / "dvc.lock")


def entry(stages, stage: str, part: str, path: str):
    [found] = [each for each in stages[stage][part] if each["path"] == path]
    return found


def test_a_fresh_clone_is_as_its_lock_says(little):
    assert lock.check(little.path) == 6


def test_so_is_the_project_that_was_run(ran):
    assert lock.check(ran.path) == 6


TRAIN = ("train@a", "train@b")


@pytest.mark.parametrize(
    ("name", "old", "new", "wanted"),
    [
        (
            "params.yaml",
            "alpha: 0.5",
            "alpha: 0.25",
            dict.fromkeys(TRAIN, "train.alpha is 0.25, not 0.5"),
        ),
        (
            "params.yaml",
            "  steps: null\n",
            "",
            dict.fromkeys(TRAIN, "train.steps is gone"),
        ),
        (
            "params.yaml",
            "  steps: null\n",
            "  steps: null\n  decay: null\n",
            dict.fromkeys(TRAIN, "train.decay is new"),
        ),
        (
            "params.yaml",
            "kind: y",
            "kind: [1, z]",
            {"train@b": 'methods.b.kind is [1, "z"], not y'},
        ),
        ("params.yaml", "seed: 7\n", "", {"ingest": "seed is gone"}),
        ("src/train.py", "two", "three", dict.fromkeys(TRAIN, "src/train.py has changed")),
        ("raw/one.csv", "1", "4", {"ingest": "raw has changed"}),
        ("metrics.json", "0.5", "0.6", {"evaluate": "metrics.json is not what its run wrote"}),
        ("table.csv", "1", "2", {"evaluate": "table.csv is not what its run wrote"}),
        ("dvc.yaml", "cat raw/*", "cat -n raw/*", {"ingest": "its command has changed"}),
        (
            "dvc.yaml",
            "deps: [raw, ",
            "deps: [raw, src/train.py, ",
            {"ingest": "dvc.lock has nothing of src/train.py"},
        ),
        (
            "dvc.yaml",
            "params: [train, ",
            "params: [train, seed, ",
            dict.fromkeys(TRAIN, "seed is new"),
        ),
        (
            "dvc.yaml",
            "outs: [report.txt]",
            "outs: [report.txt, more.txt]",
            {"report": "dvc.lock has nothing of its output more.txt"},
        ),
    ],
)
def test_a_change_makes_the_stages_stale_that_read_it(little, name, old, new, wanted):
    little.replace(name, old, new)
    found = stale(little)
    if name == "params.yaml":
        assert found.pop("report") == "params.yaml has changed"
    assert found == wanted


def test_a_comment_in_the_parameters_concerns_who_reads_the_file(little):
    little.replace("params.yaml", "seed: 7", "seed: 7  # of all")
    assert stale(little) == {"report": "params.yaml has changed"}


def test_data_that_dvc_keeps_counts_by_its_recorded_hash(little):
    assert not (little / "labels.txt").exists()
    [line] = [
        line for line in (little / "labels.txt.dvc").read_text().splitlines() if "md5: " in line
    ]
    little.replace("labels.txt.dvc", line, f"{line[:-4]}0000")
    assert stale(little) == {"labels": "labels.txt is not what labels.txt.dvc made"}


def test_new_files_in_a_directory_of_data_count(little):
    little.write("raw/three.csv", "3\n")
    assert stale(little) == {"ingest": "raw has changed"}


def test_a_directory_of_code_is_hashed_as_dvc_does(little):
    """In a fresh clone, too: no stage makes it, so that only its files count."""
    little.write("src/common/__pycache__/files.cpython-311.pyc", "compiled\n")
    little.write("src/common/inner/__pycache__/hashes.cpython-311.pyc", "compiled\n")
    little.write("src/common/files.py.orig", "left over\n")
    assert stale(little) == {}
    changed = dict.fromkeys(("labels", *TRAIN), "src/common has changed")
    little.write("src/common/inner/hashes.py", "other\n")
    assert stale(little) == changed
    little.git("checkout", "--quiet", "src/common")
    little.write("src/common/inner/more.py", "more\n")
    assert stale(little) == changed
    (little / "src/common/inner/more.py").rename(little / "src/common/inner/more.orig")
    assert stale(little) == {}
    shutil.rmtree(little / "src/common")
    assert stale(little) == dict.fromkeys(("labels", *TRAIN), "src/common is missing")


def test_missing_files_count_unless_git_ignores_them(little):
    (little / "src/train.py").unlink()
    (little / "table.csv").unlink()
    assert stale(little) == {
        **dict.fromkeys(TRAIN, "src/train.py is missing"),
        "evaluate": "table.csv is missing",
    }
    little.write(".git/info/exclude", "/src/train.py\n/table.csv\n")
    assert stale(little) == {}


def test_stages_that_one_file_has_and_the_other_has_not(little):
    little.replace("dvc.yaml", "names: [a, b]", "names: [a, c]")
    little.replace("params.yaml", "  b:\n", "  c:\n")
    edit_lock(little, lambda stages: stages.pop("report"))
    assert stale(little) == {
        "train@c": "there is no run of it in dvc.lock",
        "report": "there is no run of it in dvc.lock",
        "train@b": "dvc.yaml has no such stage any more",
    }


def test_without_a_lock_no_stage_has_a_run(little):
    (little / "dvc.lock").unlink()
    assert set(stale(little).values()) == {"there is no run of it in dvc.lock"}
    assert len(stale(little)) == 6


@pytest.mark.parametrize(
    ("stage", "path", "key", "wanted"),
    [
        ("ingest", "data.csv", "md5", dict.fromkeys(TRAIN, "data.csv is not what ingest made")),
        ("labels", "known.txt", "md5", {"evaluate": "known.txt is not what labels made"}),
        # A directory of files that stages made: its hash follows from theirs.
        (
            "train@a",
            "curves/a.csv",
            "md5",
            {"evaluate": "curves is not what train@a, train@b made"},
        ),
        # A directory of directories: their sizes and numbers of files.
        ("train@b", "models/b", "size", {"evaluate": "models is not what train@a, train@b made"}),
        ("train@b", "models/b", "nfiles", {"evaluate": "models is not what train@a, train@b made"}),
    ],
)
def test_results_that_were_made_anew_make_their_readers_stale(little, stage, path, key, wanted):
    """As when only some stages were run, and the lock was committed."""

    def remake(stages) -> None:
        out = entry(stages, stage, "outs", path)
        out[key] = f"{'0' * 30}ff" if key == "md5" else out[key] + 1

    edit_lock(little, remake)
    assert stale(little) == wanted


def test_gitignore_files_beside_results_may_have_come_after_the_hash(little):
    """DVC writes them itself."""
    little.write("curves/.gitignore", "/a.csv\n/b.csv\n# more\n")
    changed = {"evaluate": "curves is not what train@a, train@b made"}
    assert stale(little) == changed

    def hash_results_only(stages) -> None:
        files = [
            {"md5": entry(stages, f"train@{name}", "outs", path)["md5"], "relpath": f"{name}.csv"}
            for name, path in (("a", "curves/a.csv"), ("b", "curves/b.csv"))
        ]
        digest = hashlib.md5(json.dumps(files, sort_keys=True).encode()).hexdigest()
        entry(stages, "evaluate", "deps", "curves")["md5"] = f"{digest}.dir"

    edit_lock(little, hash_results_only)
    assert stale(little) == {}
    little.write("curves/c.csv", "1\n")
    assert stale(little) == changed


def test_a_frozen_stage_is_not_held_to_what_it_reads(little):
    little.replace("dvc.yaml", "  ingest:\n", "  ingest:\n    frozen: true\n")
    little.write("src/ingest.py", "other\n")
    little.replace("params.yaml", "seed: 7", "seed: 8")
    assert stale(little) == {"report": "params.yaml has changed"}


def test_many_reasons_are_counted(little):
    names = "\n".join(f"  more{number}: {number}" for number in range(6))
    little.replace("params.yaml", "  steps: null\n", f"  steps: null\n{names}\n")
    reasons = "; ".join(f"train.more{number} is new" for number in range(4))
    assert stale(little)["train@a"] == f"{reasons}; and 2 more"


def test_another_revision_can_be_checked(little):
    from prlhf.project.pipeline import at_revision, open_project

    little.write("src/train.py", "other\n")
    little.commit()
    (little / "src/ingest.py").unlink()
    with open_project(little.path) as project:
        found = {}
        for revision in ("HEAD", "HEAD~1"):
            with at_revision(project, revision, revision):
                found[revision] = {one.stage: one.why for one in lock.find(project)}
    assert found == {"HEAD": dict.fromkeys(TRAIN, "src/train.py has changed"), "HEAD~1": {}}


def test_the_command_says_a_line_for_each_stage_and_fails(little, monkeypatch, capsys):
    monkeypatch.chdir(little.path)
    assert cli.execute(["lock", "check"]) == 0
    assert capsys.readouterr().out == "dvc.lock: records all 6 stages as they are\n"
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    assert cli.execute(["lock", "check"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "error: dvc.lock: train@a is stale: train.alpha is 0.25, not 0.5",
        "error: dvc.lock: train@b is stale: train.alpha is 0.25, not 0.5",
        "error: dvc.lock: report is stale: params.yaml has changed",
        "error: dvc.lock: does not record 3 of 6 stages as they are "
        "(run `dvc repro`, then commit dvc.lock and reports/)",
    ]


def test_it_writes_nothing_that_git_sees(little):
    lock.check(little.path)
    assert little.git("status", "--porcelain") == ""


def test_it_needs_no_git(little):
    shutil.rmtree(little / ".git")
    assert lock.check(little.path) == 6


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("dvc.lock", "<<<<<<< ours\n", "dvc.lock"),
        ("dvc.yaml", "stages:\n  a:\n    cdm: x\n", "dvc.yaml"),
        ("dvc.yaml", "stages:\n  a:\n    cmd: echo ${no.key}\n", "no.key"),
        ("params.yaml", "seed: [\n", "params.yaml"),
    ],
)
def test_files_that_cannot_be_read_are_one_line(little, monkeypatch, capsys, name, text, line):
    little.write(name, text)
    monkeypatch.chdir(little.path)
    assert cli.execute(["lock", "check"]) == 2
    [printed] = capsys.readouterr().err.splitlines()
    assert printed.startswith("error: ")
    assert line in printed


def test_outside_of_a_project_it_says_so(isolated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path, "git", "init", "--quiet")
    assert cli.execute(["lock", "check"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}: not in a DVC project (run this in a clone)\n"
    )
