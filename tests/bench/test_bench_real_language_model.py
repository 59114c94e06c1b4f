"""The benchmark of P-DPO on real people: its runs, the control's data, and the table."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from benchmarks import real_data
from benchmarks.real import language_model
from benchmarks.real.figures import Mean
from benchmarks.real.language_model import Compared, Run, compare, page, read, read_run, shuffled
from benchmarks.real.sets import SETS
from prlhf.project import ablations

ROOT = Path(__file__).resolve().parents[2]


def write_pairs(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as lines:
        lines.writelines(f"{json.dumps(row)}\n" for row in rows)
    return path


def vote(user: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"user_id": user, "prompt": "Which?", "chosen": chosen, "rejected": rejected}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in SETS:
        write_pairs(tmp_path / f"data/{name}/pairs.jsonl.gz", [vote("a", "x", "y")])
    return tmp_path / "data"


# -- runs ------------------------------------------------------------------------------------------


def test_every_run_has_good_parameters(data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = read(data, list(SETS), 3, tmp_path / "work")
    runs = ablations.resolve(found)
    assert len(runs) == 3 * (len(SETS) + 1)
    for run in runs:
        name = run.setting.removesuffix("-shuffled")
        params = run.params
        assert params.split.by == ("response" if SETS[name].by_text else "unit")
        assert (params.split.unseen_users, params.judge.kind) == (0.0, "none")
        assert params.data.max_users is not None
        assert params.data.max_rows is None, "people are whole"
        assert {"dpo", "pdpo"} <= set(params.compare.trained)
        assert Path(params.data.path).is_file()
        assert (tmp_path / "work" in Path(params.data.path).parents) == (run.setting != name)


def test_a_control_comes_with_its_data_set(data, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    one = read(data, ["polis"], 2, tmp_path / "work")
    assert [setting.name for setting in one.settings] == ["polis", "polis-shuffled"]
    assert len(one.seeds) == 2
    data_set, control = (
        {key: value for key, value in setting.own.items() if not key.startswith("compare.")}
        for setting in one.settings
    )
    assert data_set == control
    other = read(data, ["llmfao"], 1, tmp_path / "other")
    assert [setting.name for setting in other.settings] == ["llmfao"]
    assert not (tmp_path / "other").exists()


def test_users_are_shuffled_among_those_who_were_asked_the_same(tmp_path):
    rows = [
        vote(user, *(("x", "y") if mine else ("y", "x")))
        for user, mine in zip("abcdefgh", [1, 1, 1, 1, 0, 0, 0, 0], strict=True)
    ]
    rows += [vote("a", "p", "q"), vote("b", "r", "s"), vote("c", "t", "u")]  # asked of one alone
    path = write_pairs(tmp_path / "some/pairs.jsonl.gz", rows)
    to = shuffled(path, tmp_path / "work/pairs.jsonl.gz")
    written = to.read_bytes()
    found = [json.loads(line) for line in gzip.decompress(written).splitlines()]
    texts = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    assert [{key: row[key] for key in texts[0]} for row in found] == texts

    def users(chosen: list[dict[str, Any]]) -> list[str]:
        return [row["user_id"] for row in chosen]

    assert Counter(users(found)) == Counter(users(rows))
    assert sorted(users(found[:8])) == list("abcdefgh")
    assert users(found[:8]) != list("abcdefgh")
    assert sorted(users(found[8:])) == list("abc")
    assert shuffled(path, to).read_bytes() == written


def test_a_run_is_read_with_ids_as_they_are(monkeypatch):
    outputs = {
        "reports/pretrain.json": {"gain": {"personal": True}},
        "reports/curves/pdpo.json": {"trust": {"trust": 0.5}},
        "reports/curves/mine.json": {"steps": 3},
    }
    asked = []

    def stored(path: str, repo: str, rev: str) -> str:
        asked.append((repo, rev))
        return json.dumps(outputs[path])

    monkeypatch.setattr(language_model.dvc.api, "read", stored)
    table = "user_id,group,seen,pairs,accuracy_dpo\nNA,,True,4,0.5\n007,,True,2,\nx,,False,3,0.1\n"
    monkeypatch.setattr(language_model.ablation_runs, "show", lambda *_: table)
    params = SimpleNamespace(compare=SimpleNamespace(trained=["dpo", "pdpo", "mine"]))
    found: Any = SimpleNamespace(run=SimpleNamespace(seed=7, params=params), commit="c" * 40)
    run = read_run(SimpleNamespace(root=Path("root")), found)  # type: ignore[arg-type]
    assert run.users["user_id"].tolist() == ["NA", "007"]
    assert (run.models, run.personal, run.trust) == (["pdpo", "mine"], True, {"pdpo": 0.5})
    assert set(asked) == {("root", "c" * 40)}


# -- figures ---------------------------------------------------------------------------------------


def people(seed: int, count: int = 40, gain: float = 0.0, worst: float = 0.0) -> Run:
    """DPO serves the last four worst on validation, and all alike on what is compared."""
    rng = np.random.default_rng(seed)
    low = np.arange(count) >= count - count // 10
    dpo = rng.choice([0.4, 0.5, 0.6], count)
    users = pd.DataFrame(
        {
            "user_id": [f"u{number}" for number in range(count)],
            "pairs": 10,
            "accuracy_dpo": dpo,
            "accuracy_pdpo": dpo + np.where(low, worst, gain),
            "pairs_validation": 10.0,
            "validation_dpo": np.where(low, 0.1, 0.7),
        }
    )
    return Run(seed, ["pdpo"], users, True, {"pdpo": 1.0})


def test_a_gain_is_a_mean_over_people_and_seeds():
    runs = [people(1, gain=0.1), people(2, gain=0.2)]
    # Whoever is in no comparison does not count.
    runs[0].users.loc[0, "accuracy_pdpo"] = np.nan
    found = compare(runs, "pdpo")
    assert (found.people, found.pairs) == (40, 790)
    # 36 of 40 gain; in the first run one fewer.
    assert found.gain.value == pytest.approx((35 * 0.1 + 36 * 0.2) / 79)
    assert found.personal - found.shared == pytest.approx(found.gain.value)
    assert found.gain.low < found.gain.value < found.gain.high


def test_the_worst_tenth_is_found_on_validation():
    found = compare([people(seed, gain=0.1, worst=-0.2) for seed in (1, 2, 3)], "pdpo")
    assert found.worst_tenth.value == pytest.approx(-0.2)
    assert found.gain.value == pytest.approx(0.9 * 0.1 - 0.1 * 0.2)
    # Whoever has no pairs there is not among them.
    runs = [people(seed, gain=0.1, worst=-0.2) for seed in (1, 2, 3)]
    for run in runs:
        run.users.loc[run.users.index[-4:], ["pairs_validation", "validation_dpo"]] = np.nan
    assert compare(runs, "pdpo").worst_tenth.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("gain", "worst", "expected"),
    [
        (Mean(0.03, 0.01, 0.05), Mean(0.0, -0.1, 0.1), "gain"),
        (Mean(0.03, 0.01, 0.05), Mean(-0.1, -0.2, -0.05), "harm"),
        (Mean(0.0, -0.01, 0.01), Mean(np.nan, np.nan, np.nan), "no harm"),
        (Mean(0.0, -0.05, 0.05), Mean(0.2, 0.1, 0.3), "not shown"),
    ],
)
def test_who_hurts_the_worst_served_does_harm(gain, worst, expected):
    assert Compared(10, 100, 0.6, 0.6, gain, worst).verdict == expected


def test_the_table_has_a_row_for_each_model_of_each_data_set():
    closed = people(2)._replace(personal=False, trust={})
    rows = page({"polis": [people(1), closed], "polis-shuffled": [people(1)]}).splitlines()
    assert len(rows) == 4
    cells = [cell.strip() for cell in rows[2].split("|")][1:-1]
    assert cells[:3] == ["polis, `pdpo`", "40", "800"]
    assert cells[5].startswith("+0.0 (")
    assert cells[7:9] == ["1 of 2", "1 -"]
    assert rows[3].startswith("| polis, users shuffled, `pdpo` |")


# -- the command -----------------------------------------------------------------------------------


def test_the_command_writes_the_part_that_was_asked_for(data, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        language_model, "measure", lambda *options: asked.append(options) or "| a table |"
    )
    out = tmp_path / "page.md"
    begin, end = (f"<!-- real-data-language-model: {word} -->" for word in ("generated", "end"))
    out.write_text(f"Before.\n\n{begin}\nold\n{end}\n", encoding="utf-8")
    options = ["--data", str(data), "--out", str(out), "--work", str(tmp_path / "work")]

    def command(*more: str) -> Any:
        return CliRunner().invoke(real_data.main, [*options, *more])

    done = command("--parts", "language-model", "--sets", "polis,llmfao", "--seeds", "2")
    assert done.exit_code == 0, done.output
    assert asked == [(data, ["polis", "llmfao"], 2, tmp_path / "work")]
    assert out.read_text(encoding="utf-8") == f"Before.\n\n{begin}\n\n| a table |\n\n{end}\n"
    # Before any work is done: an unknown name, and a page without a place for the other part.
    for wrong, problem in (
        (("--sets", "poles"), "--sets: poles is unknown"),
        (("--parts", "all"), "--parts: all is unknown"),
        ((), "has no place for the benchmark real-data"),
    ):
        assert problem in str(command(*wrong).exception)
    assert len(asked) == 1


def test_the_documentation_has_a_place_for_each_part():
    text = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    for name in real_data.PARTS.values():
        assert f"<!-- {name}: generated -->" in text
