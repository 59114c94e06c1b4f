"""`prlhf params diff`: what a change makes stale, and what is known of its effect."""

from __future__ import annotations

import json
import shutil

import pytest

from little_project import Little
from prlhf import cli
from prlhf.project.compare import as_json, compare, rank

TRAIN = ["train@a", "train@b"]


def for_each(reason: str) -> dict[str, list[str]]:
    return {name: [reason] for name in TRAIN}


def found(little: Little, *revisions: str) -> dict:
    return json.loads(json.dumps(as_json(compare(*revisions, path=little.path))))


def direct(changes: dict) -> dict[str, list[str]]:
    return {each["name"]: each["reasons"] for each in changes["stages"] if each["direct"]}


def following(changes: dict) -> dict[str, list[str]]:
    return {each["name"]: each["follows"] for each in changes["stages"] if not each["direct"]}


def warned(changes: dict, kind: str) -> list[dict[str, list[str]]]:
    """Of each warning of a kind what it is about; of `params` the little project has too many."""
    return [
        {about["what"]: about["stages"] for about in each["about"]}
        for each in changes["warnings"]
        if each["kind"] == kind
    ]


def test_no_change_is_no_change(little):
    changes = found(little)
    assert changes["old"] == {"name": "HEAD", "commit": little.git("rev-parse", "HEAD").strip()}
    assert changes["new"] == {"name": "workspace", "commit": None}
    for part in ("parameters", "stages", "files", "metrics", "removed_stages"):
        assert changes[part] == [], part
    assert not warned(changes, "gpu")
    assert not warned(changes, "lock")


def test_a_parameter_makes_its_readers_stale_and_others_follow(little):
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    changes = found(little)
    [parameter] = changes["parameters"]
    assert parameter == {
        "file": "params.yaml",
        "key": "train.alpha",
        "old": 0.5,
        "new": 0.25,
        "stages": TRAIN,
    }
    # The report depends on the whole file.
    assert direct(changes) == {
        **for_each("train.alpha"),
        "report": ["params.yaml"],
    }
    assert following(changes) == {"evaluate": TRAIN}
    assert changes["files"] == []
    assert [each["name"] for each in changes["stages"] if each["gpu"]] == TRAIN
    assert warned(changes, "gpu") == [{"stale by this change": TRAIN}]
    assert warned(changes, "lock") == [
        {"train.alpha is 0.25, not 0.5": TRAIN, "params.yaml has changed": ["report"]}
    ]


def test_a_parameter_of_one_method_is_of_one_stage_of_the_matrix(little):
    little.replace("params.yaml", "kind: y", "kind: z")
    changes = found(little)
    assert direct(changes) == {"train@b": ["methods.b.kind"], "report": ["params.yaml"]}
    assert following(changes) == {"evaluate": ["train@b"]}


def test_following_gpu_stages_are_told_apart(little):
    little.replace("params.yaml", "seed: 7", "seed: 8")
    changes = found(little)
    assert direct(changes).keys() == {"ingest", "report"}
    assert following(changes) == {name: ["ingest"] for name in (*TRAIN, "evaluate")}
    assert warned(changes, "gpu") == [{"follow": TRAIN}]


@pytest.mark.parametrize(
    ("old", "new", "key", "sides"),
    [
        ("  steps: null\n", "", "train.steps", {"old": None}),
        ("  steps: null\n", "  steps: null\n  more: null\n", "train.more", {"new": None}),
        ("steps: null", "steps: {}", "train.steps", {"old": None, "new": {}}),
        ("steps: null", "steps: [1, 2]", "train.steps", {"old": None, "new": [1, 2]}),
        ("steps: null", "steps: {of: 3}", "train.steps.of", {"new": 3}),
        ("alpha: 0.5", "alpha: yes", "train.alpha", {"old": 0.5, "new": "yes"}),
    ],
)
def test_null_and_absent_are_two_things(little, old, new, key, sides):
    little.replace("params.yaml", old, new)
    changes = found(little)
    [parameter] = [each for each in changes["parameters"] if each["key"] == key]
    assert {side: parameter[side] for side in ("old", "new") if side in parameter} == sides
    assert key in direct(changes)["train@a"]


def test_a_parameter_that_no_stage_reads_makes_none_stale(little):
    little.replace("params.yaml", "seed: 7\n", "seed: 7\nother: {key: 1}\n")
    changes = found(little)
    [parameter] = changes["parameters"]
    assert (parameter["key"], parameter["stages"]) == ("other.key", [])
    assert direct(changes) == {"report": ["params.yaml"]}


def test_code_and_data_count_as_well(little):
    little.write("src/train.py", "other\n")
    little.write("raw/three.csv", "3\n")
    little.write("src/unused.py", "other\n")
    changes = found(little)
    assert changes["parameters"] == []
    assert changes["files"] == [
        {
            "path": "raw",
            "kind": "data",
            "change": "changed",
            "stages": ["ingest"],
            "files": ["raw/three.csv"],
        },
        {"path": "src/train.py", "kind": "code", "change": "changed", "stages": TRAIN},
    ]
    assert direct(changes) == {"ingest": ["raw"], **for_each("src/train.py")}
    assert following(changes) == {
        "evaluate": ["ingest", *TRAIN],
        "report": ["ingest", *TRAIN],
    }


def test_a_file_in_a_directory_of_code_makes_the_stages_stale_that_read_the_directory(little):
    little.write("src/common/inner/hashes.py", "other\n")
    little.write("src/common/more.py", "more\n")
    (little / "src/common/files.py").unlink()
    changes = found(little)
    assert changes["files"] == [
        {
            "path": "src/common",
            "kind": "code",
            "change": "changed",
            "stages": ["labels", *TRAIN],
            "files": [
                "src/common/files.py",
                "src/common/inner/hashes.py",
                "src/common/more.py",
            ],
        },
    ]
    assert direct(changes) == {name: ["src/common"] for name in ("labels", *TRAIN)}
    assert following(changes).keys() == {"evaluate", "report"}
    assert warned(changes, "lock") == [{"src/common has changed": ["labels", *TRAIN]}]
    assert warned(changes, "gpu") == [{"stale by this change": TRAIN}]


def test_two_revisions_of_a_directory_are_compared_file_by_file(little):
    little.write("src/common/files.py", "other\n")
    little.commit()
    little.write("src/common/inner/hashes.py", "only in the workspace\n")
    [file] = found(little, "HEAD~1", "HEAD")["files"]
    assert (file["path"], file["files"]) == ("src/common", ["src/common/files.py"])
    assert found(little, "HEAD", "HEAD")["files"] == []


def test_what_dvcignore_names_does_not_count(little):
    little.write("src/common/__pycache__/files.cpython-311.pyc", "compiled\n")
    little.write("src/common/inner/__pycache__/hashes.cpython-311.pyc", "compiled\n")
    little.write("src/common/files.py.orig", "left over\n")
    assert found(little)["files"] == []
    # Nor if it was committed.
    little.commit()
    assert found(little, "HEAD~1", "HEAD")["files"] == []
    assert warned(found(little, "HEAD~1", "HEAD"), "lock") == []


def test_a_directory_without_files_any_more_is_gone(little):
    shutil.rmtree(little / "src/common")
    changes = found(little)
    assert changes["files"] == [
        {"path": "src/common", "kind": "code", "change": "gone", "stages": ["labels", *TRAIN]}
    ]
    assert warned(changes, "lock") == [{"src/common is missing": ["labels", *TRAIN]}]


def test_data_that_dvc_keeps_counts_by_its_recorded_hash(little):
    text = (little / "labels.txt.dvc").read_text(encoding="utf-8")
    [line] = [line for line in text.splitlines() if "md5: " in line]
    little.replace("labels.txt.dvc", line, f"{line[:-4]}0000")
    changes = found(little)
    assert changes["files"] == [
        {"path": "labels.txt", "kind": "data", "change": "changed", "stages": ["labels"]}
    ]
    assert direct(changes) == {"labels": ["labels.txt"]}


@pytest.mark.parametrize(
    ("old", "new", "reasons"),
    [
        ("cat raw/*", "cat -n raw/*", {"ingest": ["command"]}),
        ("deps: [raw, ", "deps: [raw, src/train.py, ", {"ingest": ["src/train.py"]}),
        ("params: [train, ", "params: [train, seed, ", for_each("reads seed now")),
        ("[report.txt]", "[report.txt, more.txt]", {"report": ["writes more.txt now"]}),
        ("desc", "desc", {}),
    ],
)
def test_the_pipeline_itself_can_change(little, old, new, reasons):
    if old == "desc":
        little.replace("dvc.yaml", "  labels:\n", "  labels:\n    desc: what is known\n")
    else:
        little.replace("dvc.yaml", old, new)
    assert direct(found(little)) == reasons


def test_a_file_that_a_stage_newly_reads_is_named(little):
    little.write("src/more.py", "more\n")
    little.replace("dvc.yaml", "deps: [raw, ", "deps: [raw, src/more.py, src/train.py, ")
    (little / "src/ingest.py").unlink()
    changes = {each["path"]: each["change"] for each in found(little)["files"]}
    assert changes == {
        "src/ingest.py": "gone",
        "src/more.py": "new",
        "src/train.py": "newly read",
    }


def test_stages_come_and_go(little):
    little.replace("dvc.yaml", "names: [a, b]", "names: [a, c]")
    little.replace("params.yaml", "  b:\n", "  c:\n")
    changes = found(little)
    assert direct(changes)["train@c"] == ["new stage"]
    assert "train@a" not in direct(changes)
    assert changes["removed_stages"] == ["train@b"]
    # What never ran has no result to lose.
    assert warned(changes, "gpu") == []


def test_frozen_stages_are_left_alone(little):
    little.replace("dvc.yaml", "  ingest:\n", "  ingest:\n    frozen: true\n")
    little.write("src/ingest.py", "other\n")
    assert direct(found(little)) == {}


def test_two_revisions_are_compared_whatever_the_workspace_is(little):
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    little.commit()
    little.replace("params.yaml", "alpha: 0.25", "alpha: [")
    little.write("dvc.yaml", "nonsense")
    little.git("tag", "v1", "HEAD~1")
    changes = found(little, "v1", "HEAD")
    [parameter] = changes["parameters"]
    assert (parameter["old"], parameter["new"]) == (0.5, 0.25)
    assert direct(changes).keys() == {*TRAIN, "report"}
    [backwards] = found(little, "HEAD", "v1")["parameters"]
    assert (backwards["old"], backwards["new"]) == (0.25, 0.5)
    # The older revision is as its lock says.
    assert len(warned(changes, "lock")) == 1
    assert warned(found(little, "HEAD", "v1"), "lock") == []


def test_after_the_run_the_lock_has_it_and_metrics_are_compared(ran, tmp_path):
    shutil.copytree(ran.path, tmp_path / "project", symlinks=True)
    little = Little(tmp_path / "project")
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    little.replace("dvc.yaml", '"macro":0.5,"spread":1}},"words":3', '"macro":0.75,"spread":2}}')
    assert warned(found(little), "gpu") == [{"stale by this change": TRAIN}]
    little.dvc("repro", "--quiet")
    little.commit()
    changes = found(little, "HEAD~1", "HEAD")
    assert warned(changes, "lock") == []
    [warning] = [each for each in changes["warnings"] if each["kind"] == "gpu"]
    assert warning["text"].endswith("dvc.lock has their new runs.")
    # `words` is known on one side only.
    assert changes["metrics"] == [
        {
            "file": "metrics.json",
            "key": key,
            "old": old,
            "new": new,
            "interval": None,
        }
        for key, old, new in (("accuracy.a.macro", 0.5, 0.75), ("accuracy.a.spread", 1, 2))
    ]


def test_figures_come_with_the_interval_that_the_file_has(little):
    figures = {
        "accuracy": {"a": {"macro": 0.9}},
        "interval": {"accuracy": {"a": {"macro": {"low": 0.8, "high": 1.0}}}},
    }
    little.write("metrics.json", json.dumps(figures))
    [metric] = found(little)["metrics"]
    assert (metric["old"], metric["new"], metric["interval"]) == (0.5, 0.9, [0.8, 1.0])


def test_figures_of_the_headline_come_first():
    keys = ["counts.users.seen", "fluency.pdpo.mean_nll", "accuracy.dpo.macro"]
    keys += ["win_rate.a_vs_b.win_rate", "win_rate.a_vs_b.groups.x.win_rate", "accuracy.macro"]
    assert sorted(keys, key=rank) == [
        "accuracy.dpo.macro",
        "win_rate.a_vs_b.win_rate",
        "fluency.pdpo.mean_nll",
        "counts.users.seen",
        "win_rate.a_vs_b.groups.x.win_rate",
        "accuracy.macro",
    ]


def test_a_lock_that_was_stale_before_is_said_to_have_been(little):
    little.replace("params.yaml", "seed: 7", "seed: 8")
    little.commit()
    little.write("notes.txt", "nothing to do with it\n")
    [warning] = [each for each in found(little)["warnings"] if each["kind"] == "lock"]
    assert warning["text"].endswith("It was so before this change.")
    # Results that were not valid before are not lost by the next change.
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    changes = found(little)
    [warning] = [each for each in changes["warnings"] if each["kind"] == "lock"]
    assert not warning["text"].endswith("It was so before this change.")
    assert warned(changes, "gpu") == []


def test_faults_by_the_typed_parameters_are_warned_of(little):
    [faults] = warned(found(little), "params")
    # Two that the little project really has; its sections are otherwise incomplete.
    assert any(line.startswith("params.yaml:4: train.steps: unknown key") for line in faults)
    assert any(": methods.a.kind: must be" in line for line in faults)


def test_the_command_prints_json_or_markdown(little, monkeypatch, capsys):
    monkeypatch.chdir(little / "src")  # any directory of the project
    assert cli.execute(["params", "diff", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == []
    assert cli.execute(["params", "diff", "HEAD"]) == 0
    assert capsys.readouterr().out.startswith("### What this change does to the pipeline\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nosuch"], "error: prlhf params diff: unknown revision nosuch (`git fetch` brings those"),
        (["HEAD", "HEAD~9"], "error: prlhf params diff: unknown revision HEAD~9 ("),
        (["HEAD", "HEAD", "HEAD"], "error: prlhf params diff: Got unexpected extra argument"),
        (["before"], "error: before: has no stages in a dvc.yaml"),
        (["broken"], "error: broken: "),
        (["HEAD", "torn"], "error: torn: params.yaml:2: is not valid YAML: "),
    ],
)
def test_what_cannot_be_compared_is_one_line(little, monkeypatch, capsys, arguments, line):
    little.git("branch", "good")
    little.git("checkout", "--quiet", "--orphan", "before")
    little.git("rm", "--quiet", "-r", "--cached", ".")
    little.git("add", ".dvc", "params.yaml")
    little.git("commit", "--quiet", "--message", "before there was a pipeline")
    for name, file, text in (
        ("broken", "dvc.yaml", "stages: {a: {cdm: x}}\n"),
        ("torn", "params.yaml", "seed: [\n"),
    ):
        little.git("checkout", "--quiet", "--force", "-B", name, "good")
        little.write(file, text)
        little.commit()
    little.git("checkout", "--quiet", "--force", "good")
    monkeypatch.chdir(little.path)
    assert cli.execute(["params", "diff", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [only] = printed.err.splitlines()
    assert only.startswith(line)


def test_without_git_it_says_so(little, monkeypatch, capsys):
    shutil.rmtree(little / ".git")
    monkeypatch.chdir(little.path)
    assert cli.execute(["params", "diff"]) == 2
    assert capsys.readouterr().err == (
        "error: prlhf params diff: the project is not under Git (run this in a clone)\n"
    )
    little.git("init", "--quiet")
    assert cli.execute(["params", "diff"]) == 2
    assert capsys.readouterr().err == "error: prlhf params diff: there is no commit yet\n"
