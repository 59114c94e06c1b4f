"""The workflow that comments on pull requests: its steps, run here with another `gh`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from little_project import Little

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / ".github" / "workflows"
WORKFLOW = YAML(typ="safe").load(WORKFLOWS / "params.yml")
TABLE, COMMENT = WORKFLOW["jobs"]["table"], WORKFLOW["jobs"]["comment"]
MARK = "<!-- prlhf params diff -->"

GH = """\
#!{python}
import json, pathlib, sys
arguments = sys.argv[1:]
with open("calls.json", "a") as file:
    file.write(json.dumps(arguments) + "\\n")
if "--paginate" in arguments:
    print(pathlib.Path("comments.txt").read_text(), end="")
"""
PRLHF = """\
#!/bin/sh
exec {python} -m prlhf "$@"
"""


def step(job: dict, name: str) -> dict:
    [found] = [each for each in job["steps"] if each.get("name", "").startswith(name)]
    return found


def execute(step: dict, place: Path, **environment: str) -> None:
    """Run a step's script as GitHub does, with its own variables set to the values given."""
    assert set(environment) == set(step["env"])
    commands = place / "commands"
    commands.mkdir(exist_ok=True)
    for name, script in (("gh", GH), ("prlhf", PRLHF)):
        (commands / name).write_text(script.format(python=sys.executable))
        (commands / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=place,
        env={
            **os.environ,
            **environment,
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            "GITHUB_STEP_SUMMARY": str(place / "summary.md"),
            "GITHUB_OUTPUT": str(place / "output.txt"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def request_(little: Little) -> Little:
    """The clone that the first job has: a change on top of the branch that it goes to."""
    little.replace("params.yaml", "alpha: 0.5", "alpha: 0.25")
    little.commit()
    return little


def outputs(place: Path) -> str:
    head, *lines, end = (place / "output.txt").read_text(encoding="utf-8").splitlines()
    assert head == f"table<<{end}"
    assert len(end) == len("end-") + 32
    return "\n".join(lines)


def test_no_code_of_a_pull_request_runs_where_it_could_write():
    assert list(WORKFLOW["on"]) == ["pull_request"]
    assert WORKFLOW["permissions"] == {}
    assert TABLE["permissions"] == {"contents": "read"}
    assert COMMENT["permissions"] == {"pull-requests": "write"}
    assert not any("uses" in each for each in COMMENT["steps"])
    assert "prlhf " not in step(COMMENT, "Post")["run"].replace(MARK, "")
    assert COMMENT["if"] == "github.event.pull_request.head.repo.full_name == github.repository"
    [checkout, *_] = TABLE["steps"]
    assert checkout["with"] == {"fetch-depth": 0, "persist-credentials": False}


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_workflows_use_github_s_own_actions_and_no_text_of_others_in_scripts(path):
    jobs = YAML(typ="safe").load(path)["jobs"]
    for each in (each for job in jobs.values() for each in job["steps"]):
        assert each.get("uses", "actions/").startswith("actions/")
        # What someone else named, a branch for instance, would run as part of the script.
        assert "${{" not in each.get("run", "")


def test_what_is_installed_is_enough(request_):
    """No package beyond those of the step, so that no PyTorch has to be installed for a table."""
    words = step(TABLE, "Install")["run"].split()
    assert {"click", "dvc", "pydantic", "ruamel.yaml"} < set(words)
    heavy = [
        "numpy",
        "pandas",
        "torch",
        "transformers",
        "prefect",
        "great_expectations",
        "datasets",
        "pyarrow",
    ]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({heavy}))\n"
        "from prlhf.cli import main\nmain(['params', 'diff', 'origin/main', 'HEAD'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=request_.path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "`train.alpha`" in done.stdout


def test_the_table_goes_to_the_summary_and_to_the_next_job(request_):
    execute(step(TABLE, "Write"), request_.path, BASE="main")
    summary = (request_ / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### What this change does to the pipeline\n\n`origin/main` (")
    assert "| `train.alpha`" in summary
    assert outputs(request_.path) == summary.rstrip("\n")


def test_what_cannot_be_compared_is_said_instead(request_):
    request_.write("params.yaml", "seed: [\n")
    request_.commit()
    execute(step(TABLE, "Write"), request_.path, BASE="main")
    lines = outputs(request_.path).splitlines()
    assert lines[:3] == ["### What this change does to the pipeline", "", "It cannot be told:"]
    assert lines[-1].startswith("    error: HEAD: params.yaml:2: is not valid YAML")


def post(place: Path, comments: str) -> list[list[str]]:
    (place / "comments.txt").write_text(comments)
    values = {"GH_TOKEN": "t", "REPOSITORY": "us/prlhf", "NUMBER": "7"}
    execute(step(COMMENT, "Post"), place, **values, TABLE="a `table` $(touch owned)\n| x |")
    assert (place / "comment.md").read_text() == f"{MARK}\na `table` $(touch owned)\n| x |\n"
    assert not (place / "owned").exists()
    return [json.loads(line) for line in (place / "calls.json").read_text().splitlines()]


def test_the_first_comment_is_posted(tmp_path):
    looked, posted = post(tmp_path, "")
    assert looked[:3] == ["api", "--paginate", "repos/us/prlhf/issues/7/comments"]
    assert f'startswith("{MARK}")' in looked[-1]
    assert 'user.login == "github-actions[bot]"' in looked[-1]
    assert posted == [
        "api",
        "--silent",
        "repos/us/prlhf/issues/7/comments",
        "-F",
        "body=@comment.md",
    ]


def test_later_ones_replace_it(tmp_path):
    _, patched = post(tmp_path, "123\n456\n")
    assert patched[1:5] == ["--silent", "--method", "PATCH", "repos/us/prlhf/issues/comments/123"]
