"""The public data sets: rows as they are published, what is made of them, what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prlhf.data import ROW_COLUMNS
from prlhf.data.prompts import messages, prompt_id
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json
from prlhf.ingest import prism, psoups, sources, tldr
from prlhf.stages import ingest, validate


def refused(call: Any, directory: Path) -> str:
    """The one line with which something is refused, its directory left aside."""
    with pytest.raises(UserError) as caught:
        call()
    (line,) = caught.value.lines()
    return line.replace(f"{directory}/", "")


# ---------------------------------------------------------------- TL;DR


def comparison(
    worker: str = "w1",
    number: int = 0,
    *,
    texts: tuple[str, str] = ("a short one", "a much longer one"),
    choice: Any = 0,
    policies: tuple[str, str] = ("sup1", "sup4_6b"),
    **info: Any,
) -> dict[str, Any]:
    """A row of the configuration `comparisons`."""
    known = {
        "id": f"t3_{number}",
        "post": f"Post {number}.\nMore.",
        "title": f"Title {number}",
        "subreddit": "AskReddit",
        "site": None,
        "article": None,
    }
    return {
        "info": known | info,
        "summaries": [
            {"text": text, "policy": policy, "note": "ok"}
            for text, policy in zip(texts, policies, strict=True)
        ],
        "choice": choice,
        "worker": worker,
        "batch": "batch3",
        "split": "train",
        "extra": {"confidence": 5},
    }


WORKERS = {"w1": 12, "w2": 10, "w3": 8, "w4": 8, "w5": 2}
"""Training rows of each worker."""


def write_tldr(directory: Path, write_lines: Any) -> Path:
    train = [comparison(worker, post) for worker, n in WORKERS.items() for post in range(n)]
    held_out = [comparison(worker, 50 + post) for worker in WORKERS for post in range(4)]
    write_lines(directory / "train.jsonl", train)
    write_lines(directory / "validation.jsonl", held_out)
    return directory


@pytest.fixture
def tldr_params() -> Any:
    return lambda **changes: SimpleNamespace(
        **{"users": 3, "labels": "length", "longer_share": 0.7} | changes
    )


@pytest.fixture
def tldr_rows(tmp_path, write_lines, tldr_params) -> Any:
    """Rows made of one file of comparisons."""

    def read(records: list[Any], **changes: Any) -> pd.DataFrame:
        path = write_lines(tmp_path / "train.jsonl", records)
        return tldr.rows(tldr.comparisons(path), tldr_params(**changes), seed=7)

    return read


def test_only_supervised_policies_are_compared(tldr_rows, capsys):
    pairs = [
        ("sup1", "sup4_6b"),
        ("sup1", "ref"),
        ("sup1", "sup4_ppo_rm4"),
        ("sup_cnndm", "sup1"),
        ("T5", "sup1"),
        ("sup4", "sup4_t.7"),
    ]
    rows = tldr_rows([comparison(policies=pair) for pair in pairs])
    assert rows["row"].tolist() == [1, 6]
    assert capsys.readouterr().err == (
        "ingest: tldr: 2 of 6 comparisons are between supervised policies, "
        "0 of them between summaries of equal length\n"
    )


def test_a_row_that_is_left_out_need_not_be_whole(tldr_rows):
    broken = comparison(policies=("ref", "sup1")) | {"info": None, "worker": 3}
    assert tldr_rows([broken, comparison()])["row"].tolist() == [2]


def test_the_prompt_is_the_papers(tldr_rows):
    rows = tldr_rows(
        [
            comparison(number=3),
            comparison(number=4, post=None, article="An article."),
            comparison(post="P", title=None, subreddit=None),
        ]
    )
    prompts = [messages(prompt) for prompt in rows["prompt"]]
    assert prompts == [
        [{"role": "user", "content": text}]
        for text in (
            "SUBREDDIT: r/AskReddit\nTITLE: Title 3\nPOST: Post 3.\nMore.\nTL;DR: ",
            "SUBREDDIT: r/AskReddit\nTITLE: Title 4\nPOST: An article.\nTL;DR: ",
            "POST: P\nTL;DR: ",
        )
    ]


def test_length_labels_follow_the_user_and_not_the_choice(tldr_rows):
    workers = [f"w{number}" for number in range(10)]
    rows = tldr_rows(
        [
            comparison(worker, post, texts=texts, choice=choice)
            for worker in workers
            for post, texts in enumerate([("aa", "bbb b"), ("aaa a", "bb"), ("aaa", "bbb")])
            for choice in (0, 1)
        ],
        users=10,
    )
    groups = rows[["user_id", "group"]].drop_duplicates()["group"].value_counts().to_dict()
    assert groups == {"longer": 7, "shorter": 3}, "each of one mind"
    assert len(rows) == 10 * 2 * 2, "no opinion on summaries of equal length"
    longer = rows["chosen"].str.len() > rows["rejected"].str.len()
    assert (longer == (rows["group"] == "longer")).all()
    assert not rows["unseen"].any()


def test_the_share_holds_among_known_and_other_users():
    names = [f"w{number}" for number in range(40)]
    for count, share, longer in [(40, 0.7, 28), (10, 0.7, 7), (5, 0.5, 3), (3, 0.0, 0), (3, 1, 3)]:
        groups = tldr.length_groups(names[:count], share, seed=7)
        assert list(groups.values()).count("longer") == longer
    assert tldr.length_groups(names, 0.7, seed=7) == tldr.length_groups(names[::-1], 0.7, seed=7)
    assert tldr.length_groups(names, 0.7, seed=7) != tldr.length_groups(names, 0.7, seed=8)


def test_real_choices(tldr_rows):
    rows = tldr_rows(
        [comparison(texts=("first", "second"), choice=choice) for choice in (0, 1)]
        + [comparison(texts=("same", "same"))],
        labels="choice",
    )
    assert rows["chosen"].tolist() == ["first", "second", "same"]
    assert rows["rejected"].tolist() == ["second", "first", "same"]
    assert rows["group"].isna().all()


def test_the_workers_with_most_training_rows_are_known(tmp_path, write_lines, tldr_params):
    parts = tldr.comparisons(write_tldr(tmp_path, write_lines))
    rows = tldr.rows(parts, tldr_params(), seed=7)
    assert tuple(rows.columns) == (*ROW_COLUMNS, "side")
    assert sorted(rows.loc[~rows["unseen"], "user_id"].unique()) == ["w1", "w2", "w3"]
    assert sorted(rows.loc[rows["unseen"], "user_id"].unique()) == ["w4", "w5"]
    assert rows.groupby("source")["side"].unique().map(list).to_dict() == {
        "train.jsonl": ["train"],
        "validation.jsonl": ["test"],
    }
    assert rows["row"].tolist() == [*range(1, 41), *range(1, 21)]
    assert tldr.most_frequent("bbaacd", 3) == ["a", "b", "c"]


def test_the_hubs_parquet_layout(tmp_path, tldr_params):
    for split in ("train", "validation"):
        path = tmp_path / f"comparisons/{split}/0000.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist([comparison(number=n) for n in range(3)]), path)
    # Another configuration, of other fields, beside it.
    pq.write_table(pa.table({"x": [1]}), tmp_path / "axis-validation.parquet")
    parts = tldr.comparisons(tmp_path)
    assert [(part.name, part.side) for part in parts] == [
        ("train/0000.parquet", "train"),
        ("validation/0000.parquet", "test"),
    ]
    rows = tldr.rows(parts, tldr_params(), seed=7)
    assert rows["source"].tolist() == ["train/0000.parquet"] * 3 + ["validation/0000.parquet"] * 3
    assert rows["row"].tolist() == [1, 2, 3, 1, 2, 3]


def test_every_format_gives_the_same_tldr_rows(tmp_path, tldr_params):
    records = [comparison(f"w{n % 3}", n, choice=n % 2) for n in range(6)]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    (tmp_path / "a.json").write_text(json.dumps(records))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    frames = [
        tldr.rows(tldr.comparisons(path), tldr_params(labels="choice"), seed=7)
        for path in sorted(tmp_path.iterdir())
    ]
    assert len(frames) == 4
    for frame in frames[1:]:
        assert frame.drop(columns="source").equals(frames[0].drop(columns="source"))


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (comparison() | {"summaries": None}, '"summaries": expected a list, found nothing'),
        (comparison() | {"summaries": ["a"]}, '"summaries[0]": expected an object, found the text'),
        (comparison(texts=("a",), policies=("sup",)), '"summaries": expected two, found 1'),
        (comparison(texts=(None, "b")), '"summaries[0].text": expected text, found nothing'),
        (comparison(policies=("sup", 3)), '"summaries[1].policy": expected text, found the num'),
        (comparison() | {"info": []}, '"info": expected an object, found a list'),
        (comparison(post=None), '"info.post": neither a post nor an article'),
        (comparison(title=1), '"info.title": expected text, found the number 1'),
        (comparison(worker=3), '"worker": expected text, found the number 3'),
        (comparison(choice=2), '"choice": expected 0 or 1, found 2'),
        (comparison(choice=True), '"choice": expected a whole number, found true'),
        (comparison(texts=("\ud800", "b")), '"summaries[0].text": holds an unpaired surrogate'),
        ("[]", "expected a JSON object, found a list"),
        ('{"info"', "malformed JSON"),
    ],
)
def test_a_faulty_comparison_is_named(tldr_rows, tmp_path, record, problem):
    line = refused(lambda: tldr_rows([comparison(), record], labels="choice"), tmp_path)
    assert line.startswith(f"train.jsonl:2: {problem}")


def test_other_rows_than_comparisons(tldr_rows, tldr_params, tmp_path):
    line = refused(lambda: tldr_rows([comparison(policies=("ref", "ppo"))]), tmp_path)
    assert "none of 1 comparisons is between two supervised policies" in line
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    parts = tldr.comparisons(tmp_path / "x.parquet")
    line = refused(lambda: tldr.rows(parts, tldr_params(), seed=7), tmp_path)
    assert line == 'x.parquet: row 1: "summaries": expected a list, found nothing'
    (tmp_path / "none").mkdir()
    (tmp_path / "none/notes.jsonl").write_text("{}")
    assert "no file of comparisons" in refused(
        lambda: tldr.comparisons(tmp_path / "none"), tmp_path
    )


# ---------------------------------------------------------------- PSOUPS

SOUPS = ["*allcombo_8_cleaned.json", *(f"*P{n}{side}.json" for n in "123" for side in "AB")]


def soup(
    user: Any = 1, prompt: Any = "Why?", a: Any = "Because.", b: Any = "No."
) -> dict[str, Any]:
    return {"user_id": user, "user_input": prompt, "completion_a": a, "completion_b": b}


def write_soups(directory: Path, records: list[Any]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "allcombo_8_cleaned.json"
    path.write_text(json.dumps(records))
    (directory / "koala_eval_50.json").write_text(json.dumps([{"prompt": "How?"}]))
    return path


def test_six_users_of_opposed_tastes(tmp_path):
    path = write_soups(tmp_path, [soup(user, f"Why {user}?") for user in range(1, 7)])
    rows = psoups.rows(psoups.soups(path.parent))
    assert tuple(rows.columns) == ROW_COLUMNS, "split by prompt, as any data set without sides"
    assert rows["user_id"].tolist() == ["1", "2", "3", "4", "5", "6"]
    assert rows["group"].tolist() == [
        "elementary",
        "expert",
        "concise",
        "informative",
        "friendly",
        "unfriendly",
    ]
    assert rows["chosen"].unique().tolist() == ["Because."]
    assert rows["rejected"].unique().tolist() == ["No."]
    assert messages(rows["prompt"][2]) == [{"role": "user", "content": "Why 3?"}]
    assert rows["row"].tolist() == [1, 2, 3, 4, 5, 6]
    assert not rows["unseen"].any()


def test_a_chat_form_around_a_prompt_is_taken_off(tmp_path):
    texts = ["<|user|>\nWhy? \n<|assistant|>\n", "Why?", "<|user|>\nWhy?", "  "]
    rows = psoups.rows({write_soups(tmp_path, [soup(prompt=text) for text in texts]): None})
    assert rows["prompt"][0] == rows["prompt"][1] != rows["prompt"][2]
    assert pd.isna(rows["prompt"][3]), "for the validation to set aside"


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        (soup(user=7), '"user_id": expected 1 to 6, found 7'),
        (soup(user="P1A"), "\"user_id\": expected a whole number, found the text 'P1A'"),
        (soup(prompt=None), '"user_input": expected text, found nothing'),
        (soup(b=["x"]), '"completion_b": expected text, found a list'),
        ([1], "expected a JSON object, found a list"),
    ],
)
def test_a_faulty_soup_is_named(tmp_path, record, problem):
    path = write_soups(tmp_path, [soup(), soup(), record])
    line = refused(lambda: psoups.rows(psoups.soups(path)), tmp_path)
    assert line == f"allcombo_8_cleaned.json: element 3: {problem}"


def write_raw_soups(directory: Path, **users: list[Any]) -> Path:
    """The files that the combined one was made from: whose a record is, its file's name says."""
    directory.mkdir(parents=True)
    for name, records in users.items():
        kept = [{k: v for k, v in record.items() if k != "user_id"} for record in records]
        (directory / f"{name}.json").write_text(json.dumps(kept))
    return directory


def test_the_six_files_of_the_authors(tmp_path):
    names = ("P3B", "P1A", "P2A", "P1B", "P3A", "P2B")
    users = {name: [soup(a=name), soup(prompt="How?", a=name)] for name in names}
    raw = write_raw_soups(tmp_path / "data/rm_training", **users)
    rows = psoups.rows(psoups.soups(tmp_path))
    assert rows["user_id"].tolist() == [str(user) for user in range(1, 7) for _ in "12"]
    assert rows["chosen"].tolist() == [name for name in sorted(names) for _ in "12"]
    assert rows["group"].tolist()[4:8] == ["concise", "concise", "informative", "informative"]
    assert rows[["source", "row"]].values.tolist()[-2:] == [["P3B.json", 1], ["P3B.json", 2]]
    combined = write_soups(tmp_path / "data", [soup()])
    assert psoups.soups(tmp_path) == {combined: None}, "it was made from them"
    combined.unlink()
    (raw / "P2A.json").unlink()
    line = refused(lambda: psoups.soups(tmp_path / "data"), tmp_path)
    assert line == "data: has no file P2A.json (data.path is the directory of the files)"


def test_the_six_files_are_cleaned_of_what_gives_the_taste_away(tmp_path, capsys):
    users = {}
    for wish, name in zip(psoups.WISHES, psoups.NAMES, strict=True):
        asked = [soup(prompt=f"Why? {wish}"), soup(prompt=f"{wish} How?"), soup(prompt="Where?")]
        equal = soup(prompt=f"When? {wish}", a="Now.", b="Now.")
        users[name] = [*asked, asked[0], equal, soup(prompt=f"Why? {wish}", a="No.", b="Because.")]
    # Another user's wish is part of what was asked.
    users["P1B"].append(soup(prompt=f"Why? {psoups.WISHES[0]}"))
    raw = write_raw_soups(tmp_path / "raw", **users)
    capsys.readouterr()
    rows = psoups.rows(psoups.soups(raw))
    assert "12 comparisons left out: 6 that came before, 6 between" in capsys.readouterr().err
    asked = {
        user: [messages(prompt)[0]["content"] for prompt in part["prompt"]]
        for user, part in rows.groupby("user_id")
    }
    plain = ["Why?", "How?", "Where?", "Why?"]
    assert asked == {
        str(user): [*plain, f"Why? {psoups.WISHES[0]}"] if user == 2 else plain
        for user in range(1, 7)
    }
    assert rows["row"].tolist()[:4] == [1, 2, 3, 6], "where they stand in the file"
    assert rows["chosen"].tolist()[3] == "No."


def test_the_combined_file_is_taken_as_it_is(tmp_path):
    records = [soup(prompt=f"Why? {psoups.WISHES[0]}")] * 2
    rows = psoups.rows(psoups.soups(write_soups(tmp_path, records)))
    assert [messages(prompt)[0]["content"] for prompt in rows["prompt"]] == [
        f"Why? {psoups.WISHES[0]}"
    ] * 2


def test_a_faulty_record_of_one_user_is_named(tmp_path):
    users = {name: [soup()] for name in psoups.NAMES}
    raw = write_raw_soups(tmp_path / "raw", **users | {"P2B": [soup(), soup(prompt=3)]})
    line = refused(lambda: psoups.rows(psoups.soups(raw)), tmp_path)
    assert line.startswith('raw/P2B.json: element 2: "user_input": expected text, found')


# ---------------------------------------------------------------- PRISM

PREFERENCES = {
    "values": 5,
    "creativity": 8,
    "fluency": 3,
    "factuality": 1,
    "diversity": 9,
    "safety": 6,
    "personalisation": 7,
    "helpfulness": 4,
    "other": 2,
}


def participant(user: str, **changes: Any) -> dict[str, Any]:
    return {
        "user_id": user,
        "num_completed_conversations": 3,
        "self_description": f"I am {user}.",
        "order_stated_prefs": PREFERENCES,
        "age": "25-34 years old",
        "gender": "Female",
        "education": "University Bachelors Degree",
        "employment_status": "Working full-time",
        "marital_status": "Never been married",
        "english_proficiency": "Native speaker",
        "system_string": "You are ...",
    } | changes


def message(turn: int, role: str, content: Any, chosen: Any = None) -> dict[str, Any]:
    return {
        "turn": turn,
        "role": role,
        "content": content,
        "if_chosen": chosen,
        "score": None if role == "user" else 50,
        "model_name": None,
        "model_provider": None,
        "within_turn_id": 0,
    }


def dialogue(user: str, name: str, opening: str | None = None, turns: int = 2) -> dict[str, Any]:
    """A dialogue: three replies at first, then two; the second one is chosen each time."""
    opening = f"Opening of {name}" if opening is None else opening
    history = []
    for turn in range(turns):
        history.append(message(turn, "user", opening if turn == 0 else f"{name} goes on {turn}"))
        history += [
            message(turn, "model", f"{name} {turn} reply {reply}", reply == 1)
            for reply in range(3 if turn == 0 else 2)
        ]
    return {
        "conversation_id": name,
        "user_id": user,
        "conversation_turns": turns,
        "open_feedback": "",
        "conversation_history": history,
    }


@pytest.fixture
def prism_rows(tmp_path, write_lines) -> Any:
    """Rows made of dialogues; every user of theirs has answered the survey."""

    def read(dialogues: list[Any], survey: list[Any] | None = None, **changes: Any) -> pd.DataFrame:
        if survey is None:
            survey = [participant(user) for user in sorted({each["user_id"] for each in dialogues})]
        params = SimpleNamespace(**{"seen_users": 1.0, "train_dialogues": 0.9} | changes)
        return prism.rows(
            write_lines(tmp_path / "survey.jsonl", survey),
            write_lines(tmp_path / "conversations.jsonl", dialogues),
            params,
            seed=7,
        )

    return read


def test_the_chosen_reply_against_every_other(prism_rows):
    rows = prism_rows([dialogue("ann", "c1"), dialogue("ann", "c2", turns=1)])
    assert tuple(rows.columns) == (*ROW_COLUMNS, "side", "unit")
    assert rows[["row", "chosen", "rejected"]].to_numpy().tolist() == [
        [1, "c1 0 reply 1", "c1 0 reply 0"],
        [1, "c1 0 reply 1", "c1 0 reply 2"],
        [1, "c1 1 reply 1", "c1 1 reply 0"],
        [2, "c2 0 reply 1", "c2 0 reply 0"],
        [2, "c2 0 reply 1", "c2 0 reply 2"],
    ]
    assert messages(rows["prompt"][0]) == [{"role": "user", "content": "Opening of c1"}]
    assert messages(rows["prompt"][2]) == [
        {"role": "user", "content": "Opening of c1"},
        {"role": "assistant", "content": "c1 0 reply 1"},
        {"role": "user", "content": "c1 goes on 1"},
    ]
    assert rows["unit"].nunique() == 2
    assert rows["unit"][0] == prompt_id(rows["prompt"][0])


def test_turns_are_read_in_their_order(prism_rows):
    turned = dialogue("ann", "c1")
    turned["conversation_history"].reverse()
    rows = prism_rows([turned])
    assert len(messages(rows["prompt"][0])) == 1
    assert len(messages(rows["prompt"][2])) == 3


def test_a_dialogue_ends_where_nothing_is_chosen(prism_rows, capsys):
    open_end = dialogue("ann", "c1", turns=3)
    for entry in open_end["conversation_history"]:
        if entry["turn"] == 1 and entry["role"] == "model":
            entry["if_chosen"] = False
    assert len(prism_rows([open_end])) == 2
    assert "1 dialogues are read up to a turn without a choice" in capsys.readouterr().err


def test_users_texts(prism_rows):
    survey = [
        participant("ann", self_description="I teach.\n  And paint"),
        participant(
            "bob",
            order_stated_prefs=None,
            self_description=None,
            age=None,
            gender="Prefer not to say",
            education=" ",
        ),
        {"user_id": "cyd"},
        participant("dee", order_stated_prefs={"safety": 2, "values": 1.0, "fluency": None}),
    ]
    rows = prism_rows(
        [dialogue(user, f"c {user}") for user in ("ann", "bob", "cyd", "dee")], survey
    )
    texts = rows.groupby("user_id")["user_text"].first()
    assert texts["ann"] == (
        "Matters most to them in a language model: factuality, fluency, helpfulness. "
        "In their own words: I teach. And paint. Age: 25-34 years old. Gender: Female. "
        "Education: University Bachelors Degree. Employment: Working full-time. "
        "Marital status: Never been married. English proficiency: Native speaker."
    )
    assert texts["bob"] == (
        "Employment: Working full-time. Marital status: Never been married. "
        "English proficiency: Native speaker."
    )
    assert rows.loc[rows["user_id"] == "cyd", "user_text"].isna().all()
    assert texts["dee"].startswith("Matters most to them in a language model: values, safety. In")
    assert rows.loc[rows["user_id"] == "ann", "user_text"].nunique(dropna=False) == 1


def test_seen_users_and_their_dialogues(prism_rows):
    dialogues = [
        dialogue(f"u{user}", f"c{user} {n}") for user in range(20) for n in range(1 + user % 7)
    ]
    rows = prism_rows(dialogues, seen_users=0.8)
    unseen = rows.groupby("user_id")["unseen"].first()
    single = {"u0", "u7", "u14"}
    assert unseen[sorted(single)].all(), "users with a single dialogue"
    assert 4 <= unseen.sum() <= 7
    assert (rows.loc[rows["unseen"], "side"] == "test").all()
    sides = rows[~rows["unseen"]].drop_duplicates("unit").groupby(["user_id", "side"]).size()
    for user in unseen.index[~unseen]:
        n = 1 + int(user[1:]) % 7
        assert sides[user, "train"] == max(1, int(0.9 * n))
        assert sides[user, "test"] == n - max(1, int(0.9 * n))
    assert rows.groupby("row")["side"].nunique().max() == 1, "a dialogue is whole"
    again = prism_rows(dialogues[::-1], seen_users=0.8).groupby("user_id")["unseen"].first()
    assert again.equals(unseen)
    assert len(prism.training_dialogues(list("abcdefghij"), 0.7, 7)) == 7


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"user_id": None}, '"user_id": expected text, found nothing'),
        ({"conversation_id": 4}, '"conversation_id": expected text, found the number 4'),
        ({"conversation_history": None}, '"conversation_history": expected a list, found nothing'),
        (
            {"conversation_history": [message(0, "bot", "x")]},
            "\"conversation_history[0].role\": expected user or model, found 'bot'",
        ),
        (
            {"conversation_history": [message(0, "user", "x"), message(0, "model", "y", "yes")]},
            '"conversation_history[1].if_chosen": expected true or false, found the text',
        ),
        (
            {"conversation_history": [message(0, "user", 5), message(0, "model", "y", True)]},
            '"conversation_history[0].content": expected text, found the number 5',
        ),
        (
            {"conversation_history": [message("first", "user", "x")]},
            '"conversation_history[0].turn": expected a whole number, found the text',
        ),
        (
            {"conversation_history": [message(3, "model", "x", True)] * 2},
            '"conversation_history": turn 3 has 0 user messages and 2 chosen replies',
        ),
    ],
)
def test_a_faulty_dialogue_is_named(prism_rows, tmp_path, change, problem):
    faulty = dialogue("ann", "c2") | change
    line = refused(
        lambda: prism_rows([dialogue("ann", "c1"), faulty], [participant("ann")]), tmp_path
    )
    assert line.startswith(f"conversations.jsonl:2: {problem}")


def test_faults_of_the_survey(prism_rows, tmp_path):
    talks = [dialogue("ann", "c1")]
    assert refused(lambda: prism_rows(talks, [participant("bob")]), tmp_path) == (
        'conversations.jsonl:1: "user_id": ann is not in survey.jsonl'
    )
    odd = participant("ann", order_stated_prefs={"safety": "high"})
    assert refused(lambda: prism_rows(talks, [odd]), tmp_path) == (
        'survey.jsonl:1: "order_stated_prefs.safety": expected a whole number, '
        "found the text 'high'"
    )
    assert '"age": expected text, found the number 30' in refused(
        lambda: prism_rows(talks, [participant("ann", age=30)]), tmp_path
    )
    mute = dialogue("ann", "c1") | {"conversation_history": []}
    assert "no turn has a chosen and a rejected reply" in refused(
        lambda: prism_rows([mute]), tmp_path
    )


# ---------------------------------------------------------------- through the stages


def write_prism(directory: Path, write_lines: Any) -> Path:
    users = [f"user{number:02}" for number in range(10)]
    talks = [dialogue(user, f"{user} {n}") for user in users for n in range(4)]
    # Dialogues of one opening, by everybody.
    talks += [dialogue(user, f"{user} hello", opening="Hello") for user in users]
    write_lines(directory / "conversations.jsonl", talks)
    write_lines(directory / "survey.jsonl", [participant(user) for user in users])
    return directory


def prepared() -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in Path("data/prepared").glob("*.parquet")}


def test_tldr_through_both_stages(work, data_params, rules, shares, write_lines):
    write_tldr(work / "tldr", write_lines)
    ingest.run(seed=7, data=data_params(source="tldr", path="tldr"))
    dataset = read_json("data/ingested/dataset.json")
    assert (dataset["name"], dataset["source"], dataset["task"]) == ("tldr", "tldr", "length")
    validate.run(seed=7, label_noise=0.0, rules=rules(max_majority_share=1.0), split=shares())
    tables = prepared()
    users = tables["users"].set_index("user_id")
    assert users["seen"].to_dict() == {"w1": True, "w2": True, "w3": True} | dict.fromkeys(
        ("w4", "w5"), False
    )
    assert len(tables["test"]) == 12, "the public validation split"
    assert len(tables["train"]) + len(tables["validation"]) == 30
    assert tables["validation"]["prompt_id"].nunique() == 2, "a fifth of twelve posts"
    assert tables["unseen"]["prompt_split"].value_counts()["test"] == 8
    assert users["group"].isin(["longer", "shorter"]).all()


def test_tldr_with_real_choices_has_no_oracle(work, data_params, write_lines):
    write_tldr(work / "tldr", write_lines)
    real = {"users": 3, "labels": "choice", "longer_share": 0.7}
    ingest.run(seed=7, data=data_params(source="tldr", path="tldr", tldr=real))
    assert read_json("data/ingested/dataset.json")["task"] is None


def test_psoups_through_both_stages(work, data_params, rules, shares):
    records = [soup(user, f"Why {n}?", f"a{user}") for user in range(1, 7) for n in range(10)]
    write_soups(work / "soups", records)
    ingest.run(seed=7, data=data_params(source="psoups", path="soups"))
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares(unseen_users=0.5))
    tables = prepared()
    assert len(tables["unseen"]) == 0
    assert [len(tables[name]) for name in ("train", "validation", "test")] == [36, 12, 12]
    assert not set(tables["train"]["prompt_id"]) & set(tables["test"]["prompt_id"])
    assert tables["train"].groupby("user_id")["group"].first()["4"] == "informative"


def test_prism_through_both_stages(work, data_params, rules, shares, write_lines, capsys):
    write_prism(work / "prism", write_lines)
    ingest.run(seed=7, data=data_params(source="prism", path="prism"))
    validate.run(seed=7, label_noise=0.0, rules=rules(), split=shares())
    tables = prepared()
    seen = tables["users"].set_index("user_id")["seen"]
    assert seen.sum() == 9
    sides = pd.concat(
        [tables[name].assign(side=name) for name in ("train", "validation", "test")]
        + [tables["unseen"].assign(side=tables["unseen"]["prompt_split"])]
    )
    assert sides.groupby("row")["side"].nunique().max() == 1, "a dialogue is whole"
    assert sides.groupby("prompt_id")["side"].nunique().max() == 1
    train_users = set(tables["train"]["user_id"])
    assert train_users == set(seen.index[seen])
    assert len(tables["validation"])
    assert len(tables["test"])
    hello = sides[sides["prompt"].str.contains('"Hello"')]
    assert hello["row"].nunique() == 10
    assert hello["side"].nunique() == 1
    assert "count as training pairs" in capsys.readouterr().err
    assert tables["train"]["user_text"].str.startswith("Matters most").all()


def test_sampling_and_noise_apply(work, data_params, rules, shares, write_lines):
    write_tldr(work / "tldr", write_lines)
    changes = {"source": "tldr", "path": "tldr", "label_noise": 0.4, "max_rows": 40}
    ingest.run(seed=7, data=data_params(**changes))
    assert len(pd.read_parquet("data/ingested/rows.parquet")) == 40
    validate.run(seed=7, label_noise=0.4, rules=rules(), split=shares())
    turned = {}
    for name in ("train", "test"):
        pairs = prepared()[name]
        longer = pairs["chosen"].str.len() > pairs["rejected"].str.len()
        turned[name] = int((longer != (pairs["group"] == "longer")).sum())
    assert 0 < turned["train"] < 20
    assert turned["test"] == 0


# ---------------------------------------------------------------- from the hub


@pytest.mark.parametrize(
    ("source", "hub", "asked"),
    [
        (
            "tldr",
            {},
            ("openai/summarize_from_feedback", "refs/convert/parquet", ["comparisons/*"]),
        ),
        (
            "prism",
            {"revision": "abc"},
            ("HannahRoseKirk/prism-alignment", "abc", ["survey.jsonl", "conversations.jsonl"]),
        ),
        (
            "psoups",
            {"id": "org/soups"},
            (
                "org/soups",
                None,
                SOUPS,
            ),
        ),
    ],
)
def test_the_hub_gives_the_same_files(
    work, monkeypatch, data_params, write_lines, source, hub, asked
):
    import huggingface_hub

    write = {
        "tldr": lambda path: write_tldr(path / "comparisons", write_lines),
        "prism": lambda path: write_prism(path, write_lines),
        "psoups": lambda path: write_soups(path / "data", [soup()]),
    }
    write[source](work / "snapshot")
    calls = []

    def download(name: str, *, repo_type: str, revision: str, allow_patterns: list[str]) -> str:
        assert repo_type == "dataset"
        calls.append((name, revision, allow_patterns))
        return str(work / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    hub = {"id": None, "config": None, "split": "train", "revision": None} | hub
    from_hub = sources.read(data_params(source=source, path="data/seed", hub=hub), seed=7)
    assert calls == [asked]
    from_disk = sources.read(data_params(source=source, path="snapshot"), seed=7)
    assert calls == [asked], "files that are named are read without the hub"
    pd.testing.assert_frame_equal(from_hub.rows, from_disk.rows)


def test_a_hub_out_of_reach_is_one_line(monkeypatch, data_params, tmp_path):
    import huggingface_hub

    def download(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    line = refused(
        lambda: sources.read(data_params(source="prism", path="data/seed"), seed=7), tmp_path
    )
    assert line == (
        "HannahRoseKirk/prism-alignment: cannot load this data set: Couldn't reach the hub "
        "(check data.hub.* and the network, or download it and set data.path)"
    )


def test_files_that_are_not_there(work, data_params, write_lines):
    def line(**changes: Any) -> str:
        return refused(lambda: sources.read(data_params(**changes), seed=7), work)

    assert line(source="prism", path="none").startswith("none: no such file or directory")
    write_lines(work / "some/survey.jsonl", [participant("ann")])
    assert line(source="prism", path="some").startswith("some: has no file conversations.jsonl")
    assert line(source="psoups", path="some").startswith("some: has no file allcombo_8_cleaned")
    (work / "one.csv").write_text("a\n1\n")
    assert line(source="psoups", path="one.csv").startswith("one.csv: a .csv file has no nested")


def test_psoups_needs_a_place(data_params):
    with pytest.raises(ValueError, match="must name the published file"):
        data_params(source="psoups", path="data/seed")
