"""params.yaml with keys changed for one run: the rest of the file stays, faults name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from prlhf.infra.errors import UserError, UserErrors
from prlhf.params import load
from prlhf.params.loading import overridden, parse_override

COMMITTED = Path(__file__).resolve().parents[2] / "params.yaml"
LINES = COMMITTED.read_text(encoding="utf-8").splitlines()


def faults(changes) -> list[str]:
    with pytest.raises(UserErrors) as caught:
        overridden(COMMITTED, changes)
    return caught.value.lines()


def test_no_change_gives_the_same_text():
    assert overridden(COMMITTED, {}) == COMMITTED.read_text(encoding="utf-8")


def test_only_the_lines_of_the_keys_change_and_comments_stay():
    text = overridden(COMMITTED, {"train.beta": 0.125, "optimizer.eval_pairs": None, "seed": 11})
    different = [
        (before, after)
        for before, after in zip(LINES, text.splitlines(), strict=True)
        if before != after
    ]
    assert [after.split("#")[0].strip() for _, after in different] == [
        "seed: 11",
        "beta: 0.125",
        "eval_pairs: null",
    ]
    for before, after in different:
        assert after.partition("#")[1:] == before.partition("#")[1:]


def test_the_file_itself_is_only_read(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(COMMITTED.read_bytes())
    changed = overridden(path, {"train.alpha": 0.125})
    assert path.read_bytes() == COMMITTED.read_bytes()
    path.write_text(changed, encoding="utf-8")
    assert load(path).train.alpha == 0.125


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"optimizer.lora_lr": 1e-5}, "optimizer.lora_lr", 1e-5),
        (
            {"optimizer.lora.targets": ["q_proj", "v_proj"]},
            "optimizer.lora.targets",
            ["q_proj", "v_proj"],
        ),
        ({"data.path": "a: b # c"}, "data.path", "a: b # c"),
        ({"model.revision": "1e5"}, "model.revision", "1e5"),
        ({"user_model.clusters": "auto"}, "user_model.clusters", "auto"),
        ({"optimizer.gradient_checkpointing": True}, "optimizer.gradient_checkpointing", True),
        ({"optimizer": {"lora": {"r": 3}}}, "optimizer.lora.r", 3),
        (
            {"methods.mine": {"kind": "individual", "text": False}},
            "methods.mine.kind",
            "individual",
        ),
    ],
)
def test_what_is_written_reads_back(tmp_path, changes, key, value):
    path = tmp_path / "params.yaml"
    path.write_text(overridden(COMMITTED, changes), encoding="utf-8")
    found = load(path)
    for step in key.split("."):
        found = found[step] if isinstance(found, dict) else getattr(found, step)
    assert found == value


def test_an_unknown_key_names_the_nearest_and_all_faults_are_told():
    assert sorted(faults({"train.alhpa": 0.3, "train.beta": -1, "user_model.beta": 1})) == [
        "train.alhpa: unknown key (did you mean train.alpha?)",
        "train.beta: must be a number (above 0), not -1",
        "user_model.beta: unknown key (did you mean train.beta?)",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": 3}, "train: must be a mapping, not 3"),
        ({"train.beta": "0.5"}, 'train.beta: must be a number (above 0), not the text "0.5"'),
        ({"train..beta": 1}, "train..beta: is no name of a parameter (write it as train.alpha)"),
        (
            {"methods.base": {"kind": "uniform", "text": False}},
            "methods.base: is no name for a method",
        ),
        (
            {"optimizer.batch_size": 4, "optimizer.micro_batch_size": 3},
            "optimizer.micro_batch_size: must divide batch_size (4), not 3",
        ),
        (
            {"optimizer.batch_size": "auto", "optimizer.micro_batch_size": 3},
            "optimizer.micro_batch_size: must be a power of two, as batch_size: auto is, not 3",
        ),
        (
            {"optimizer.batch_size": "auto", "launch.processes": 3, "launch.machines": 2},
            "optimizer.batch_size: auto is a power of two, which 6 processes (launch) cannot share",
        ),
    ],
)
def test_a_value_of_a_wrong_type_or_a_key_of_no_section(changes, problem):
    [found] = faults(changes)
    assert found.startswith(problem)


def test_a_new_method_needs_all_of_its_keys():
    [found] = faults({"methods.mine.kind": "cluster"})
    assert "methods.mine.text: missing key" in found


def test_a_contradiction_with_the_file_names_the_line_of_the_other_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        overridden(COMMITTED, {"optimizer.micro_batch_size": 2, "optimizer.batch_size": 4})
    )
    number = 1 + next(
        i for i, line in enumerate(path.read_text().splitlines()) if "micro_batch_size:" in line
    )
    with pytest.raises(UserErrors) as caught:
        overridden(path, {"optimizer.batch_size": 5})
    assert caught.value.lines() == [
        f"{path}:{number}: optimizer.micro_batch_size: must divide batch_size (5), not 2"
    ]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.alpha=0.3", "train.alpha", 0.3),
        ("optimizer.lora_lr=1e-4", "optimizer.lora_lr", 1e-4),
        ("optimizer.max_steps=null", "optimizer.max_steps", None),
        ("optimizer.lora.targets=[q, v]", "optimizer.lora.targets", ["q", "v"]),
        ("data.path=a=b", "data.path", "a=b"),
        ("model.name='1'", "model.name", "1"),
    ],
)
def test_the_command_lines_form(text, key, value):
    assert parse_override(text) == (key, value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [("[" * 3000 + "}", "is nested too deeply"), ("[&a 1, *a]", "refers to another value as *a")],
)
def test_an_override_holds_no_more_than_it_shows(value, problem):
    with pytest.raises(UserError) as caught:
        parse_override(f"train.alpha={value}")
    [line] = caught.value.lines()
    assert line.startswith(f"train.alpha={value}:1: {problem}")


@pytest.mark.parametrize("text", ["train.alpha", "=3", "train.alpha=[1", "train.alpha={"])
def test_what_is_no_override(text):
    with pytest.raises(UserError) as caught:
        parse_override(text)
    assert str(caught.value).startswith(f"{text}: ")
