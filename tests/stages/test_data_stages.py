"""The stages `ingest` and `validate`: their files, and what is left when the data are refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from prlhf.data import PAIR_COLUMNS, ROW_COLUMNS, USER_COLUMNS
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json
from prlhf.stages import ingest, validate

INGESTED = {"rows.parquet", "dataset.json"}
PREPARED = {
    "train.parquet",
    "validation.parquet",
    "test.parquet",
    "unseen.parquet",
    "users.parquet",
    "quarantine.parquet",
    "dataset.json",
}


def digests(*directories: str) -> dict[str, str]:
    """The content of every file below the directories."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for directory in directories
        for path in sorted(Path(directory).rglob("*"))
        if path.is_file()
    }


def test_ingest_writes_rows_and_says_what_they_are(work, data_params, pairs, write_lines, capsys):
    write_lines(work / "pairs.jsonl", [*pairs(), {"user_id": None, "prompt": ""}])
    ingest.run(seed=7, data=data_params())
    assert {path.name for path in Path("data/ingested").iterdir()} == INGESTED
    rows = pd.read_parquet("data/ingested/rows.parquet")
    assert tuple(rows.columns) == ROW_COLUMNS
    assert len(rows) == 51
    dataset = read_json("data/ingested/dataset.json")
    assert len(dataset.pop("content_hash")) == 32
    assert dataset == {"name": "pairs.jsonl", "source": "local", "task": None, "rows": 51}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "ingest: pairs.jsonl: 51 rows of 5 users\n"


@pytest.mark.usefixtures("seed_root")
@pytest.mark.parametrize("name", ["length", "style"])
def test_the_built_in_data_pass_both_stages(data_params, rules, shares, name):
    ingest.run(seed=7, data=data_params(source="builtin", name=name, path="data/seed"))
    dataset = read_json("data/ingested/dataset.json")
    assert (dataset["name"], dataset["source"], dataset["task"]) == (name, "builtin", name)
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    users = pd.read_parquet("data/prepared/users.parquet")
    assert int(users["seen"].sum()) == {"length": 10, "style": 6}[name]
    assert int((~users["seen"]).sum()) == {"length": 4, "style": 0}[name]
    assert users["group"].notna().all()


def test_the_content_hash_is_of_the_content(work, data_params, pairs, write_lines):
    hashes = []
    for path in ("a/pairs.jsonl", "b/pairs.jsonl"):
        write_lines(work / path, pairs())
        ingest.run(seed=7, data=data_params(path=path))
        hashes.append(read_json("data/ingested/dataset.json")["content_hash"])
    write_lines(work / "c/pairs.jsonl", pairs()[1:])
    ingest.run(seed=7, data=data_params(path="c/pairs.jsonl"))
    hashes.append(read_json("data/ingested/dataset.json")["content_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_validate_writes_everything_it_promises(
    work, data_params, rules, shares, pairs, write_lines, capsys
):
    write_lines(work / "pairs.jsonl", [*pairs(), pairs()[0]])
    ingest.run(seed=7, data=data_params())
    capsys.readouterr()
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())

    assert {path.name for path in Path("data/prepared").iterdir()} == PREPARED
    tables = {path.stem: pd.read_parquet(path) for path in Path("data/prepared").glob("*.parquet")}
    for name in ("train", "validation", "test"):
        assert tuple(tables[name].columns) == PAIR_COLUMNS
        assert (tables[name]["user_index"] > 0).all()
    assert tuple(tables["unseen"].columns) == (*PAIR_COLUMNS, "prompt_split")
    assert tuple(tables["users"].columns) == USER_COLUMNS
    assert tuple(tables["quarantine"].columns) == (*ROW_COLUMNS, "reason")
    summary = json.loads(Path("reports/validation.json").read_text(encoding="utf-8"))
    assert summary["success"]
    assert summary["pairs"] == {
        name: len(tables[name]) for name in ("train", "validation", "test", "unseen")
    }
    assert sum(summary["pairs"].values()) + len(tables["quarantine"]) == 51
    assert read_json("data/prepared/dataset.json")["splits"] == summary["pairs"]

    page = Path("reports/data_docs/index.html").read_text(encoding="utf-8")
    assert "great-expectations-web-assets" not in page
    assert len(list(Path("reports/data_docs/validations").rglob("*.html"))) == 6
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "validate: 50 of 51 rows usable: 24 train, 8 validation, 8 test, 10 unseen",
        "validate: quarantined 1 duplicate; see data/prepared/quarantine.parquet",
    ]
    assert not Path(".cache/validation").exists()


def test_a_second_run_gives_the_same_bytes(work, data_params, rules, shares, pairs, write_lines):
    write_lines(work / "pairs.jsonl", pairs())
    found = []
    for _ in range(2):
        ingest.run(seed=7, data=data_params(max_rows=40))
        validate.run(seed=7, label_noise=0.1, rules=rules(), split=shares())
        found.append(
            digests("data") | {"": Path("reports/validation.json").read_text(encoding="utf-8")}
        )
    assert found[0] == found[1]


def test_refused_data_leave_earlier_results_and_say_where_to_look(
    work, data_params, rules, shares, pairs, write_lines
):
    write_lines(work / "pairs.jsonl", pairs())
    ingest.run(seed=7, data=data_params())
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    before = digests("data/prepared", "reports")

    write_lines(work / "pairs.jsonl", [pair | {"chosen": ""} for pair in pairs()])
    ingest.run(seed=7, data=data_params())
    with pytest.raises(UserError) as caught:
        validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())

    (line,) = caught.value.lines()
    assert line.startswith("pairs.jsonl: 50 of 50 rows are unusable: 50 empty_chosen")
    assert line.endswith("(details: .cache/validation/)")
    assert digests("data/prepared", "reports") == before
    details = Path(".cache/validation")
    listed = pd.read_csv(details / "quarantine.csv")
    assert listed["reason"].tolist() == ["empty_chosen"] * 50
    assert listed["row"].tolist() == list(range(1, 51))
    assert len(pd.read_parquet(details / "quarantine.parquet")) == 50
    assert not read_json(details / "validation.json")["success"]
    assert (details / "data_docs/index.html").exists()

    write_lines(work / "pairs.jsonl", pairs())
    ingest.run(seed=7, data=data_params())
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    assert not details.exists(), "what was wrong with earlier data would only mislead"


def test_a_source_that_is_refused_leaves_earlier_rows(work, data_params, pairs, write_lines):
    write_lines(work / "pairs.jsonl", pairs())
    ingest.run(seed=7, data=data_params())
    before = digests("data")
    write_lines(work / "pairs.jsonl", [*pairs(), "{"])
    with pytest.raises(UserError, match="^pairs.jsonl:51: malformed JSON"):
        ingest.run(seed=7, data=data_params())
    assert digests("data") == before


def test_a_failure_while_writing_replaces_nothing(
    work, data_params, rules, shares, pairs, write_lines, monkeypatch
):
    write_lines(work / "pairs.jsonl", pairs())
    ingest.run(seed=7, data=data_params())
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    before = digests("data", "reports")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(validate, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        validate.run(seed=8, label_noise=0.0, rules=rules(), split=shares())
    assert digests("data", "reports") == before


def test_users_of_one_pair_stay_and_are_said(
    work, data_params, rules, shares, pairs, write_lines, capsys
):
    single = {"user_id": "once", "prompt": "Question 1?", "chosen": "a", "rejected": "b"}
    write_lines(work / "pairs.jsonl", [single, *pairs()])
    ingest.run(seed=7, data=data_params())
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    assert pd.read_parquet("data/prepared/quarantine.parquet").empty
    users = pd.read_parquet("data/prepared/users.parquet").set_index("user_id")
    assert users["few"].to_dict() == {f"user{n}": False for n in range(5)} | {"once": True}
    assert users.loc["once", "user_index"] > 0
    assert read_json("reports/validation.json")["users"] == {"seen": 5, "unseen": 1, "few": 1}
    assert (
        "validate: warning: 1 of 5 seen users have fewer than 2 pairs "
        "(validate.min_pairs_per_user) or none to train on, together 2.0% of the pairs"
    ) in capsys.readouterr().err


def test_pairs_between_sides_are_set_aside_and_not_counted_as_faults(
    work, data_params, rules, shares, write_lines, capsys
):
    """A single prompt, of which everyone judged all pairs of ten responses."""
    jokes = [f"joke {n}" for n in range(10)]
    rows = [
        {"user_id": f"u{user}", "prompt": "Tell me a joke.", "chosen": one, "rejected": other}
        for user in range(4)
        for place, one in enumerate(jokes)
        for other in jokes[:place]
    ]
    write_lines(work / "pairs.jsonl", rows)
    ingest.run(seed=7, data=data_params())
    split = shares(by="response", unseen_users=0.0)
    validate.run(seed=7, label_noise=0.0, rules=rules(max_quarantined=0.0), split=split)
    parts = {n: pd.read_parquet(f"data/prepared/{n}.parquet") for n in ("train", "test")}
    texts = {name: {*part["chosen"], *part["rejected"]} for name, part in parts.items()}
    assert all(texts.values())
    assert not texts["train"] & texts["test"]
    aside = pd.read_parquet("data/prepared/quarantine.parquet")
    assert tuple(aside.columns) == (*ROW_COLUMNS, "reason")
    assert set(aside["reason"]) == {"spans_sides"}
    summary = read_json("reports/validation.json")
    assert summary["quarantined"]["spans_sides"] == len(aside)
    assert summary["rows"]["usable"] + len(aside) == len(rows) == 180
    assert f"warning: {len(aside)} of 180 pairs" in capsys.readouterr().err


def test_rows_that_all_lack_a_user(work, data_params, pairs, write_lines):
    write_lines(work / "pairs.jsonl", [pair | {"user_id": None} for pair in pairs()])
    with pytest.raises(UserError, match="no row names a user"):
        ingest.run(seed=7, data=data_params(max_users=2))


def test_validate_before_ingest(work, rules, shares):
    with pytest.raises(UserError, match="dvc repro"):
        validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
