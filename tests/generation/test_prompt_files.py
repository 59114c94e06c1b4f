"""Prompts of one's own: the files they are read from, what is wrong with them, what is left out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas as pd
import pytest

from prlhf.data.prompts import canonical_prompt, prompt_id
from prlhf.generation import read_prompts
from prlhf.infra.errors import UserError
from prlhf.infra.io import write_parquet
from prlhf.stages.generate import prompts_to_answer

CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]
FILES = {
    "list.json": json.dumps([{"prompt": "Why?", "id": 3}, "How?", CHAT, {"prompt": CHAT}, "Why?"]),
    "lines.jsonl": f'{{"prompt": "Why?"}}\n\n"How?"\n{json.dumps(CHAT)}\n{{"prompt": "How?"}}\n',
}


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", FILES)
def test_each_prompt_once_in_the_order_of_the_file(work, name, zipped):
    data = FILES[name].encode()
    path = work / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(data) if zipped else data)
    found = read_prompts(path)
    assert found["prompt"].tolist() == [canonical_prompt(each) for each in ("Why?", "How?", CHAT)]
    assert found["prompt_id"].tolist() == [prompt_id(prompt) for prompt in found["prompt"]]


def test_lines_of_text_and_a_table(work):
    wanted = [canonical_prompt(each) for each in ("Why?", "[1] How?")]
    Path("a.txt").write_text("\ufeffWhy?  \r\n\n[1] How?\nWhy?", encoding="utf-8")
    assert read_prompts(Path("a.txt"))["prompt"].tolist() == wanted
    write_parquet("a.parquet", pd.DataFrame({"n": [1, 2], "prompt": ["Why?", "[1] How?"]}))
    assert read_prompts(Path("a.parquet"))["prompt"].tolist() == wanted


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.json", '[{"prompt": "a"},', "a.json:1: malformed JSON: Expecting value (column 18)"),
        ("a.json", '[{"text": "a"}]', "a.json: element 1: has no field prompt"),
        ("a.json", "[[]]", "a.json: element 1: prompt: a list of messages without a message"),
        ("a.json", '["a", 7]', "a.json: element 2: prompt: expected text or a list of messages, "),
        ("a.jsonl", '"a"\n{"prompt": " "}', "a.jsonl:2: prompt: a message without content"),
        ("a.json", "[]", "a.json: is empty: no rows in it"),
        ("a.txt", "\n \n", "a.txt: holds no prompt (see params.yaml: generate.prompts_path)"),
        (
            "a.csv",
            "prompt\na",
            "a.csv: unknown kind of file .csv (known: .json, .jsonl, .ndjson, .parquet, ",
        ),
        ("a.txt.gz", "no gzip", "a.txt.gz: is not a whole gzip file: "),
        ("b/a.json", "[]", "b: is not a file (see params.yaml: generate.prompts_path)"),
        ("c.json", None, "c.json: no such file (see params.yaml: generate.prompts_path)"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(work, name, text, fault):
    path = Path(name)
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_prompts(path.parent if "/" in name else path)
    assert str(caught.value).startswith(fault)


def prepared(work: Path) -> None:
    """One prompt on each side, named after it; that of an unseen user's training side, too."""

    def table(*texts: str) -> pd.DataFrame:
        prompts = [canonical_prompt(text) for text in texts]
        return pd.DataFrame({"prompt_id": [prompt_id(p) for p in prompts], "prompt": prompts})

    for split in ("train", "validation", "test"):
        write_parquet(work / f"data/prepared/{split}.parquet", table(split))
    unseen = table("test", "stranger's").assign(prompt_split=["test", "train"])
    write_parquet(work / "data/prepared/unseen.parquet", unseen)


def texts_of(found: pd.DataFrame) -> list[str]:
    return [json.loads(prompt)[0]["content"] for prompt in found["prompt"]]


def test_what_was_learned_from_is_left_out_and_said(work, capsys):
    prepared(work)
    Path("own.txt").write_text("train\nnew\nvalidation\ntest\nstranger's\n", encoding="utf-8")
    assert texts_of(prompts_to_answer(Path("own.txt"), "generate dpo")) == ["new", "test"]
    assert capsys.readouterr().err == (
        "generate dpo: 3 of 5 prompts of own.txt are left out: they are in the training or "
        "validation data\n"
    )
    Path("own.txt").write_text("new\n", encoding="utf-8")
    assert texts_of(prompts_to_answer(Path("own.txt"), "generate dpo")) == ["new"]
    assert capsys.readouterr().err == ""


def test_nothing_but_training_prompts_is_an_error(work):
    prepared(work)
    Path("own.txt").write_text("train\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"^own.txt: all its prompts are in the training"):
        prompts_to_answer(Path("own.txt"), "generate dpo")


def test_the_held_out_prompts_are_those_of_the_data(work):
    prepared(work)
    found = prompts_to_answer(Path("data/prepared/test.parquet"), "generate dpo")
    assert texts_of(found) == ["test"]
