"""The campaign of bad days: a short form of it, and faults planted to see that it catches them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.chaos import __main__ as chaos
from benchmarks.chaos import files, kills, models, params, tables, texts
from benchmarks.chaos.project import Project, Result
from benchmarks.chaos.trial import REFUSED, USED, Fault, NotRun, Outcome, Part, plain, run
from prlhf.infra.errors import UserError
from prlhf.ingest import sources


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRLHF_DEVICE", "cpu")


def ends(part: Part, numbers: range, work: Path) -> dict[int, Outcome]:
    return {outcome.number: outcome for outcome in run(part, numbers, work, 1)}


# -- the short form --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "count"),
    [(files.FILES, 24), (params.PARAMS, 40), (models.MODELS, 12)],
    ids=["files", "params", "models"],
)
def test_a_short_campaign_finds_no_fault(part: Part, count: int, tmp_path: Path):
    found = ends(part, range(count), tmp_path)
    assert [outcome for outcome in found.values() if outcome.fault] == []
    assert {outcome.ended for outcome in found.values()} == {USED, REFUSED}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_line_refuses_as_the_functions_do(tmp_path: Path):
    found = ends(files.COMMANDS, range(3), tmp_path)
    assert [outcome for outcome in found.values() if outcome.fault] == []


def test_a_trial_is_known_by_its_number(tmp_path: Path):
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        feedback = tables.write(Random("files:7"), tmp_path / name)
        made.append((feedback.about, [path.read_bytes() for path in tmp_path.glob(f"{name}/*")]))
    assert made[0] == made[1]
    text = params.setup(tmp_path)
    assert params.damaged(Random("params:7"), text) == params.damaged(Random("params:7"), text)


def test_hostile_texts_differ_and_are_many():
    found = list(texts.hostile(Random(0)))
    assert len(found) == texts.EACH
    assert len(set(found)) > 45


# -- planted faults --------------------------------------------------------------------------------


def sound(random: Random, directory: Path) -> tables.Feedback:
    rows = tables.seed_rows(random)
    path = directory / "feedback.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tables.Feedback(path, ["sound"], rows=rows)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Outcome]:
    """The outcome of sound feedback that goes through a faulty ingestion."""
    right = sources.read

    def planted(change: Callable[[Any], Any], patience: float = 300.0) -> Outcome:
        monkeypatch.setattr(files, "write", sound)
        monkeypatch.setattr(sources, "read", lambda *a, **k: change(right(*a, **k)))
        part = dataclasses.replace(files.FILES, patience=patience)
        [outcome] = ends(part, range(1), tmp_path).values()
        assert outcome.about == "sound"
        return outcome

    return planted


def without_a_row(source: Any) -> Any:
    return dataclasses.replace(source, rows=source.rows.drop(index=3).reset_index(drop=True))


def one_row_twice(source: Any) -> Any:
    rows = source.rows.copy()
    rows.loc[3, "row"] = rows.loc[2, "row"]
    return dataclasses.replace(source, rows=rows)


def another_person(source: Any) -> Any:
    rows = source.rows.copy()
    rows.loc[0, "user_id"] = "user 1"
    return dataclasses.replace(source, rows=rows)


def unknown_key(source: Any) -> Any:
    return {}["chosen"]


def chatter(source: Any) -> Any:
    os.write(2, b"FutureWarning: a library speaks\n")
    return source


def nowhere(source: Any) -> Any:
    raise UserError("something is wrong")


def crash(source: Any) -> Any:
    os._exit(7)


def hang(source: Any) -> Any:
    time.sleep(3600)


def nothing(source: Any) -> Any:
    return source


@pytest.mark.parametrize(
    ("change", "ended", "detail"),
    [
        (nothing, USED, ""),
        (without_a_row, "books", "missing [4]"),
        (one_row_twice, "books", "missing [4], too many [3]"),
        (another_person, "another value", "'user 0' became 'user 1'"),
        (unknown_key, "traceback", "KeyError: 'chosen'"),
        (chatter, "raw output", "FutureWarning: a library speaks"),
        (nowhere, "no place", "something is wrong"),
        (crash, "crash", "status 7"),
    ],
)
def test_a_faulty_ingestion_is_caught(plant, tmp_path: Path, change, ended, detail):
    outcome = plant(change)
    assert outcome.ended == ended
    assert detail in outcome.detail
    kept = tmp_path / "files-0"
    if outcome.fault:
        assert json.loads((kept / "outcome.json").read_text())["ended"] == ended
        assert (kept / "feedback.jsonl").exists()
    else:
        assert not kept.exists()


def test_a_hang_is_killed_and_the_next_trial_is_made(monkeypatch, tmp_path: Path):
    def attempt(trial: Any, shared: Any) -> tuple[str, str]:
        trial.tries(f"trial {trial.number}")
        if trial.number == 1:
            subprocess.run(["sleep", "3600"], check=False)
        return USED, ""

    found = ends(Part("slow", "", 3, attempt, 3.0), range(3), tmp_path)
    assert [outcome.ended for outcome in found.values()] == [USED, "hang", USED]
    assert found[1].about == "trial 1"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("feedback.csv:1: \x1b[31m", "control characters"),
        ("feedback.csv:1: \ud800", "unprintable"),
        ("x" * 2001, "long line"),
    ],
)
def test_a_line_that_no_terminal_should_get_is_caught(line, kind):
    with pytest.raises(Fault) as caught:
        plain(line)
    assert caught.value.kind == kind


def test_parameters_that_are_read_as_others_are_caught(monkeypatch, tmp_path: Path):
    right = params.load

    def rounded() -> Any:
        found = right()
        return found.model_copy(update={"seed": found.seed + 1})

    monkeypatch.setattr(params, "load", rounded)
    monkeypatch.setattr(params, "damaged", lambda random, text: (text.encode(), "sound"))
    monkeypatch.setattr(params, "setup", lambda _: (params.ROOT / "params.yaml").read_text())
    part = dataclasses.replace(params.PARAMS, setup=params.setup)
    [outcome] = ends(part, range(1), tmp_path).values()
    assert (outcome.ended, outcome.detail) == ("another value", "seed: 7 is 8")


def test_code_of_a_model_that_runs_is_caught(monkeypatch, tmp_path: Path):
    def trusting(model: Any) -> None:
        Path("ran").touch()
        raise UserError("is no model", where="model.name")

    monkeypatch.setattr(models.base_model, "run", trusting)
    [outcome] = ends(models.MODELS, range(1), tmp_path).values()
    assert outcome.ended == "ran code"


# -- outputs ---------------------------------------------------------------------------------------

BENIGN = f"<p>&lt;script&gt;{texts.CODE}&lt;/script&gt; http://{texts.PLACE}/</p>"
LATE = "setTimeout(() => document.documentElement.setAttribute('data-' + 'ran', 1), 1)"


@pytest.mark.parametrize("text", [BENIGN, f'<script>const rows = ["{texts.CODE}"]</script>'])
def test_text_that_is_shown_as_text_is_no_harm(text):
    assert texts.Reader(text).harm == []


@pytest.mark.parametrize(
    "text",
    [
        f"<script>{texts.CODE}</script>",
        f'<img src=x onerror="{texts.CODE}">',
        f'<a href="java\nscript:{texts.CODE}">x</a>',
        f'<iframe srcdoc="<script>{texts.CODE}</script>">',
        f'<img src="http://{texts.PLACE}/x.png">',
        f"<style>@import url(//{texts.PLACE}/x.css)</style>",
        f"<script>var rows = '</script><script>{texts.CODE}</script>'</script>",
    ],
)
def test_markup_of_somebody_is_found(text):
    assert texts.Reader(text).harm


def test_what_only_a_browser_sees_is_found(tmp_path: Path):
    browser = texts.setup(tmp_path)
    if browser is None:
        pytest.skip("no browser on the path")
    for name, text in {"sound": BENIGN, "harmful": f"<script>{LATE}</script>"}.items():
        (tmp_path / f"{name}.html").write_text(f"<!doctype html><title>x</title>{text}")
    texts.looked_at(tmp_path / "sound.html", browser)
    texts.looked_at(tmp_path / "harmful.html", None)
    with pytest.raises(Fault, match="ran"):
        texts.looked_at(tmp_path / "harmful.html", browser)


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("a.csv", "user_id,n\n'=1+1,-0.5\n", None),
        ("a.csv", "user_id,n\n=1+1,1\n", "formula"),
        ("a.csv", 'user_id,n\n"\t=1",1\n', "formula"),
        ("a.csv", 'user_id,n\n"a,b"\n', "broken table"),
        ("a.json", '{"a": 1}', None),
        ("a.json", "{'a': 1}", "broken JSON"),
        ("a;b.json", "{}", "file name"),
        ("../a.json", "{}", "escaped"),
    ],
)
def test_files_for_people_and_programs(tmp_path: Path, name, text, kind):
    (tmp_path / "project/reports").mkdir(parents=True)
    path = tmp_path / "project" / name
    path.write_text(text)

    def check() -> None:
        texts._names(tmp_path)
        texts._tables(tmp_path / "project")
        texts._json_files(tmp_path / "project")

    if kind is None:
        check()
    else:
        with pytest.raises(Fault) as caught:
            check()
        assert caught.value.kind == kind


# -- interruptions ---------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose result is one file."""
    found = Project(tmp_path / "project")
    (found.path / "reports").mkdir(parents=True)
    (found.path / "reports/metrics.json").write_text("1")
    return found


def test_other_bytes_are_found(project: Project):
    expected = project.digests()
    project.require_same(expected)
    (project.path / "reports/metrics.json").write_text("2")
    with pytest.raises(Fault, match="reports/metrics.json"):
        project.require_same(expected)
    (project.path / "reports/metrics.json").unlink()
    with pytest.raises(Fault, match="reports/metrics.json"):
        project.require_same(expected)


def test_a_command_that_hangs_or_breaks_is_caught(project: Project):
    with pytest.raises(Fault, match="hang"):
        project.run("sleep", "3600", patience=0.5)
    with pytest.raises(Fault, match="KeyError: 1"):
        project.run("python", "-c", "{}[1]", patience=60)
    assert project.run("false", patience=60) == Result(1, "", "")


def test_a_cause_that_is_not_told_is_caught():
    told = Result(2, "", "error: data/x: no space left on device (free some space)\n")
    assert kills._told(told, "no space left").startswith("error: data/x")
    with pytest.raises(Fault, match="cause dropped"):
        kills._told(Result(255, "", "ERROR: failed to reproduce\n"), "no space left")


def test_a_job_that_loses_its_work_is_caught(project: Project, monkeypatch):
    """It writes what it has done in pieces, and takes half a piece for a whole one."""
    job = "[ -s reports/metrics.json ] || { printf 1; sleep 1; printf 2; } > reports/metrics.json"
    (project.path / "reports/metrics.json").write_text("12")
    shared = kills.Shared(project, project.digests(), 2.0)
    (project.path / "reports/metrics.json").unlink()
    monkeypatch.setattr(kills, "REPRO", ("sh", "-c", job))
    monkeypatch.setattr(kills, "KILLS", 2)
    trial: Any = SimpleNamespace(random=Random(0))
    with pytest.raises(Fault, match="other bytes"):
        kills._all(trial, project, shared)


# -- the command -----------------------------------------------------------------------------------


def test_what_is_done_is_kept_and_written(monkeypatch, tmp_path: Path, capfd):
    made = tmp_path / "made"

    def attempt(trial: Any, shared: Any) -> tuple[str, str]:
        trial.tries(f"`{trial.number}`")
        with made.open("a") as file:
            file.write(f"{trial.number}\n")
        if trial.number == 1:
            raise NotRun("no rights")
        if trial.number == 2:
            raise Fault("books", "a | b\x1b")
        return (USED, REFUSED)[trial.number % 2], ""

    monkeypatch.setattr(chaos, "PARTS", {"some": Part("some", "Some", 9, attempt, 60.0)})
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n<!-- chaos: generated -->\n<!-- chaos: end -->\n")
    options = [
        "--parts",
        "some",
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(page),
        "--workers",
        "1",
    ]
    for count in ("3", "5", "5"):
        chaos.main(["--count", count, *options], standalone_mode=False)
    assert made.read_text().split() == ["0", "1", "2", "3", "4"]
    text = page.read_text()
    assert "| Some | 4 | 9 | 2 | 1 | 1 | 1 |" in text
    assert "- not run: `1`: no rights" in text
    assert "- some 2, books: `'2': a | b\\x1b`" in text
    assert "python -m benchmarks.chaos --parts some --number 2" in capfd.readouterr().err
    with pytest.raises(UserError, match="known: some"):
        chaos.main([*options, "--parts", "other"], standalone_mode=False)
