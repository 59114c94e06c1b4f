"""Splits by prompt, unit and time, a data set's own sides, and users held out whole."""

from __future__ import annotations

from functools import partial

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.data import PAIR_COLUMNS, SPLITS, USER_COLUMNS
from prlhf.data.ids import content_hash
from prlhf.data.prompts import canonical_prompt, messages, opening, prompt_id
from prlhf.infra.errors import UserError
from prlhf.ingest.columns import typed_rows
from prlhf.validation import splits
from prlhf.validation.splits import Prepared

split = partial(splits.split, min_pairs=1)


def usable(judged: list[tuple[str, str]], unseen: dict[str, bool] | None = None) -> pd.DataFrame:
    """Rows of (user, prompt)."""
    rows = typed_rows(
        pd.DataFrame(
            {
                "row": range(1, len(judged) + 1),
                "source": "test",
                "user_id": [user for user, _ in judged],
                "prompt": [canonical_prompt(prompt) for _, prompt in judged],
                "chosen": "a",
                "rejected": "b",
                "unseen": [(unseen or {}).get(user) for user, _ in judged],
            }
        )
    )
    return rows.assign(
        prompt_id=rows["prompt"].map(prompt_id),
        opening_id=rows["prompt"].map(opening).map(prompt_id),
        pair_id=[
            content_hash(user, prompt, "a", "b")
            for user, prompt in zip(rows["user_id"], rows["prompt"], strict=True)
        ],
    )


def own_split(
    rows: pd.DataFrame, test: set[str], units: dict[str, str] | None = None
) -> pd.DataFrame:
    """`rows` with the sides of a data set that tests on the prompts `test`."""
    text = rows["prompt"].map({canonical_prompt(f"p{n}"): f"p{n}" for n in range(100)})
    rows = rows.assign(side=text.isin(test).map({True: "test", False: "train"}))
    return rows if units is None else rows.assign(unit=text.map(units))


def grid(users: int, prompts: int) -> list[tuple[str, str]]:
    return [(f"u{user:02}", f"p{prompt}") for user in range(users) for prompt in range(prompts)]


def test_shares_indices_and_columns(shares):
    rows = usable(grid(10, 40))
    prepared = split(rows, seed=7, shares=shares(validation=0.1, test=0.2, unseen_users=0.25))
    seen = prepared.users[prepared.users["seen"]]
    assert len(seen) == 7, "a quarter of ten users, rounded half up, is unseen"
    assert seen["user_index"].tolist() == list(range(1, 8))
    assert seen["user_id"].is_monotonic_increasing
    assert (prepared.users.loc[~prepared.users["seen"], "user_index"] == 0).all()
    assert tuple(prepared.users.columns) == USER_COLUMNS
    assert {name: prepared.part(name)["prompt_id"].nunique() for name in SPLITS} == {
        "train": 28,
        "validation": 4,
        "test": 8,
    }
    for name in SPLITS:
        assert tuple(prepared.part(name).columns) == PAIR_COLUMNS
        assert (
            prepared.users[f"pairs_{name}"] == {"train": 28, "validation": 4, "test": 8}[name]
        ).all()
    unseen = prepared.part("unseen")
    assert tuple(unseen.columns) == (*PAIR_COLUMNS, "prompt_split")
    assert unseen["prompt_split"].value_counts().to_dict() == {
        "train": 84,
        "test": 24,
        "validation": 12,
    }
    assert (unseen["user_index"] == 0).all()
    assert prepared.notes == []


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)
@given(
    judged=st.lists(
        st.tuples(st.sampled_from("abcdefg"), st.integers(0, 30).map(str)),
        min_size=20,
        max_size=120,
        unique=True,
    ),
    seed=st.integers(0, 5),
)
def test_nothing_leaks_and_nothing_is_lost(shares, judged, seed):
    rows = usable(judged)
    try:
        prepared = split(rows, seed=seed, shares=shares())
    except UserError:
        return
    parts = {name: prepared.part(name) for name in (*SPLITS, "unseen")}
    everything = pd.concat(list(parts.values()))
    assert sorted(everything["pair_id"]) == sorted(rows["pair_id"])
    prompts = {name: set(parts[name]["prompt_id"]) for name in SPLITS}
    for name in SPLITS:
        assert len(parts[name])
        of_unseen = parts["unseen"]
        prompts[name] |= set(of_unseen.loc[of_unseen["prompt_split"] == name, "prompt_id"])
    assert not prompts["train"] & prompts["test"]
    assert not prompts["train"] & prompts["validation"]
    assert not prompts["test"] & prompts["validation"]
    seen = set(pd.concat([parts[name] for name in SPLITS])["user_id"])
    assert not seen & set(parts["unseen"]["user_id"])
    few = set(prepared.users.loc[prepared.users["few"], "user_id"])
    assert few == seen - set(parts["train"]["user_id"]), "without a training pair"
    counts = prepared.users[[f"pairs_{name}" for name in SPLITS]].sum(axis=1)
    assert counts.sum() == len(rows)


def test_the_seed_decides_and_the_order_of_rows_does_not(shares):
    rows = usable(grid(10, 40))
    first = split(rows, seed=7, shares=shares())
    shuffled = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    again = split(shuffled, seed=7, shares=shares())
    other = split(rows, seed=8, shares=shares())
    pd.testing.assert_frame_equal(first.users, again.users)
    assert set(first.part("test")["pair_id"]) == set(again.part("test")["pair_id"])
    assert set(first.part("test")["prompt_id"]) != set(other.part("test")["prompt_id"])


def test_splits_of_known_rows_stay_what_they_were(shares):
    """The first version's sides: data of single turns are split as ever."""
    prepared = split(usable(grid(6, 12)), seed=7, shares=shares())
    found = sides(prepared)
    assert [prompt for prompt, side in found.items() if side == "test"] == ["p3", "p6"]
    assert [prompt for prompt, side in found.items() if side == "validation"] == ["p2", "p4"]
    assert prepared.users.loc[~prepared.users["seen"], "user_id"].tolist() == ["u00"]
    assert (prepared.pairs["unit"] == prepared.pairs["prompt_id"]).all()


def test_new_prompts_leave_most_of_the_old_ones_on_their_side(shares):
    before = split(usable(grid(4, 100)), seed=7, shares=shares(unseen_users=0.0))
    after = split(usable(grid(4, 104)), seed=7, shares=shares(unseen_users=0.0))
    sides = [
        part.pairs.drop_duplicates("prompt_id").set_index("prompt_id")["prompt_split"]
        for part in (before, after)
    ]
    assert (sides[0] == sides[1].reindex(sides[0].index)).mean() > 0.95


def test_marked_users_are_kept(shares):
    marks = {"u00": False, "u01": True, "u02": False}
    prepared = split(usable(grid(3, 10), marks), seed=7, shares=shares(unseen_users=0.9))
    assert prepared.part("unseen")["user_id"].unique().tolist() == ["u01"]
    none = dict.fromkeys(marks, False)
    prepared = split(usable(grid(3, 10), none), seed=7, shares=shares(unseen_users=0.9))
    assert prepared.part("unseen").empty
    everybody = dict.fromkeys(marks, True)
    with pytest.raises(UserError, match="marks all of its users as unseen"):
        split(usable(grid(3, 10), everybody), seed=7, shares=shares())


@pytest.mark.parametrize(("users", "share", "unseen"), [(2, 0.9, 0), (3, 0.01, 1), (5, 0.0, 0)])
def test_few_users(shares, users, share, unseen):
    prepared = split(usable(grid(users, 10)), seed=7, shares=shares(unseen_users=share))
    assert int((~prepared.users["seen"]).sum()) == unseen


def test_too_few_prompts(shares):
    with pytest.raises(UserError, match="2 distinct prompts are too few"):
        split(usable(grid(5, 2)), seed=7, shares=shares())
    prepared = split(usable(grid(5, 2)), seed=7, shares=shares(validation=0.0))
    assert prepared.part("validation").empty
    assert len(split(usable(grid(5, 3)), seed=7, shares=shares()).part("validation"))


def test_a_user_without_training_pairs_counts_as_one_with_few(shares):
    everyone = split(usable(grid(4, 20)), seed=7, shares=shares(unseen_users=0.0))
    on_test = everyone.part("test")["prompt"].unique()[0]
    text = {canonical_prompt(prompt): prompt for _, prompt in grid(1, 20)}[on_test]
    judged = [*grid(4, 20), ("late", text)]
    prepared = split(usable(judged), seed=7, shares=shares(unseen_users=0.0))
    late = prepared.users.set_index("user_id").loc["late"]
    assert late["seen"]
    assert late["few"]
    assert late["user_index"] == 1
    assert late["pairs_test"] == 1
    assert prepared.part("test")["user_id"].tolist().count("late") == 1
    assert prepared.users["few"].sum() == 1
    (note,) = prepared.notes
    assert note.startswith("1 of 5 seen users have fewer than 1 pairs")


def test_prompts_of_unseen_users_alone_have_sides_too(shares):
    marks = {f"u{user:02}": user > 2 for user in range(6)}
    judged = [*grid(3, 10), *[(f"u{user:02}", f"own {n}") for user in (3, 4, 5) for n in range(10)]]
    prepared = split(usable(judged, marks), seed=7, shares=shares())
    assert prepared.part("unseen")["prompt_split"].value_counts().to_dict() == {
        "train": 18,
        "validation": 6,
        "test": 6,
    }


# ---------------------------------------------------------------- a data set's own split


def sides(prepared: Prepared) -> dict[str, str]:
    """Prompt -> side."""
    pairs = prepared.pairs.drop_duplicates("prompt")
    return {messages(row.prompt)[0]["content"]: row.prompt_split for row in pairs.itertuples()}


def test_a_test_side_of_its_own(shares):
    test = {f"p{n}" for n in range(3, 9)}
    rows = own_split(usable(grid(4, 20)), test)
    prepared = split(rows, seed=7, shares=shares(validation=0.2, test=0.7, unseen_users=0.0))
    found = sides(prepared)
    assert {prompt for prompt, side in found.items() if side == "test"} == test
    assert list(found.values()).count("validation") == 3, "a fifth of the other fourteen, rounded"
    assert prepared.notes == []
    assert tuple(prepared.part("train").columns) == PAIR_COLUMNS
    other = split(rows, seed=8, shares=shares(validation=0.2, unseen_users=0.0))
    assert {prompt for prompt, side in sides(other).items() if side == "test"} == test
    assert sides(other) != found, "the seed draws the validation prompts"
    without = split(rows, seed=7, shares=shares(validation=0.0, unseen_users=0.0))
    assert set(sides(without).values()) == {"train", "test"}


def test_a_prompt_on_both_sides_is_not_tested(shares):
    rows = own_split(usable(grid(4, 20)), {f"p{n}" for n in range(5)})
    rows.loc[rows["user_id"] == "u00", "side"] = "train"
    with pytest.raises(UserError, match="no pair of a seen user is on the test side"):
        split(rows, seed=7, shares=shares(unseen_users=0.0))
    rows = own_split(usable(grid(4, 20)), {f"p{n}" for n in range(5)})
    first = rows["prompt"] == canonical_prompt("p0")
    rows.loc[first & (rows["user_id"] == "u00"), "side"] = "train"
    prepared = split(rows, seed=7, shares=shares(unseen_users=0.0))
    assert sides(prepared)["p0"] in ("train", "validation")
    assert prepared.notes == [
        "pairs of the data set's test side whose prompts it also trains on (3) count as training "
        "pairs"
    ]


def test_units_stay_whole(shares):
    units = {f"p{n}": f"unit {n // 4}" for n in range(40)}
    rows = own_split(usable(grid(4, 40)), {f"p{n}" for n in range(8)}, units)
    found = sides(split(rows, seed=7, shares=shares(validation=0.3, unseen_users=0.0)))
    for unit in range(10):
        assert len({found[f"p{n}"] for n in range(4 * unit, 4 * unit + 4)}) == 1
    assert list(found.values()).count("validation") == 4 * 2, "three tenths of eight units"


def test_validation_takes_no_users_last_training_unit(shares):
    judged = [("few", f"p{n}") for n in (0, 1)] + [("many", f"p{n}") for n in range(2, 12)]
    rows = own_split(usable(judged), {"p1", "p11"})
    for seed in range(12):
        prepared = split(rows, seed=seed, shares=shares(validation=0.5, unseen_users=0.0))
        assert prepared.users["seen"].all()
        assert sides(prepared)["p0"] == "train"


def test_unseen_users_have_the_sides_of_the_data_set_too(shares):
    marks = {"u00": False, "u01": False, "u02": True}
    judged = [*grid(2, 20), *[("u02", f"p{n}") for n in range(30, 50)]]
    rows = own_split(usable(judged, marks), {f"p{n}" for n in (0, 1, 30, 31, 32)})
    unseen = split(rows, seed=7, shares=shares(validation=0.2)).part("unseen")
    assert unseen["prompt_split"].value_counts().to_dict() == {
        "train": 14,
        "test": 3,
        "validation": 3,
    }


def test_a_validation_side_of_its_own(shares):
    rows = own_split(usable(grid(4, 20)), {"p0", "p1"})
    named = rows["prompt"].isin([canonical_prompt(f"p{n}") for n in (2, 3, 4)])
    rows["side"] = rows["side"].mask(named, "validation")
    found = sides(split(rows, seed=7, shares=shares(validation=0.5, unseen_users=0.0)))
    assert {prompt for prompt, side in found.items() if side == "validation"} == {"p2", "p3", "p4"}
    assert {prompt for prompt, side in found.items() if side == "test"} == {"p0", "p1"}
    rows.loc[rows.index[named][0], "side"] = "test"
    prepared = split(rows, seed=7, shares=shares(unseen_users=0.0))
    assert sides(prepared)["p2"] == "validation"
    assert prepared.notes == [
        "pairs of the data set's test side whose prompts it also validates with (1) count as "
        "validation pairs"
    ]


# ---------------------------------------------------------------- dialogues, units, time


def dialogue(rows: pd.DataFrame, prompts: list[list[dict[str, str]]]) -> pd.DataFrame:
    """`rows` with these prompts, one each."""
    spelt = pd.Series([canonical_prompt(prompt) for prompt in prompts], dtype="str")
    return rows.assign(
        prompt=spelt,
        prompt_id=spelt.map(prompt_id),
        opening_id=spelt.map(opening).map(prompt_id),
    )


@pytest.mark.parametrize("by", ["unit", "prompt"])
def test_turns_of_a_dialogue_are_on_one_side(shares, by):
    judged = grid(3, 60)
    turns = []
    for _, name in judged:
        number = int(name[1:])
        said = [{"role": "system", "content": "Be kind."}] if number % 2 else []
        said.append({"role": "user", "content": f"start {number // 3}"})
        for turn in range(number % 3):
            said += [
                {"role": "assistant", "content": f"answer {number}"},
                {"role": "user", "content": f"more {turn}"},
            ]
        turns.append(said)
    rows = dialogue(usable(judged), turns)
    prepared = split(rows, seed=7, shares=shares(by=by, unseen_users=0.0))
    starts = [
        " ".join(each["content"] for each in messages(prompt)[: 1 + ("Be kind." in prompt)])
        for prompt in prepared.pairs["prompt"]
    ]
    found = prepared.pairs.groupby(starts)["prompt_split"].nunique()
    assert len(found) == 40
    assert found.max() == 1
    assert prepared.pairs.groupby(starts)["unit"].nunique().max() == 1
    assert prepared.pairs["unit"].nunique() == 40


def test_given_units_divide_prompts_and_that_is_said(shares):
    rows = usable([(f"u{user}", "summarise") for user in range(4) for _ in range(40)])
    rows["unit"] = [f"document {number // 2 % 20}" for number in range(len(rows))]
    rows["pair_id"] = [content_hash(str(number)) for number in range(len(rows))]
    with pytest.raises(UserError, match="1 distinct prompts are too few .* split.by: response"):
        split(rows, seed=7, shares=shares(by="prompt", unseen_users=0.0))
    prepared = split(rows, seed=7, shares=shares(unseen_users=0.0))
    sides = prepared.pairs.groupby(rows["unit"])["prompt_split"].agg(["nunique", "first"])
    assert sides["nunique"].max() == 1
    assert sides["first"].value_counts().to_dict() == {"train": 12, "validation": 4, "test": 4}
    assert prepared.notes == [
        "the prompts of 32 of 32 test pairs are also trained on, in other units (data.columns.unit)"
    ]
    one = content_hash("document 3")
    assert set(prepared.pairs.loc[rows["unit"] == "document 3", "unit"]) == {one}
    rows.loc[rows["unit"] == "document 3", "unit"] = None
    prepared = split(rows, seed=7, shares=shares(unseen_users=0.0))
    assert set(prepared.pairs.loc[rows["unit"].isna(), "unit"]) == {prompt_id(rows["prompt"][0])}


def test_by_time_the_newest_are_held_out(shares):
    rows = usable(grid(4, 20))
    number = rows["prompt"].map({canonical_prompt(f"p{n}"): n for n in range(20)})
    # A prompt is as old as its first choice, however often it was judged afterwards.
    rows["time"] = 1e9 + number + 1e6 * (rows["user_id"] == "u03")
    found = sides(split(rows, seed=7, shares=shares(by="time", unseen_users=0.0)))
    assert {prompt for prompt, side in found.items() if side == "test"} == {
        "p16",
        "p17",
        "p18",
        "p19",
    }
    assert {prompt for prompt, side in found.items() if side == "validation"} == {
        "p12",
        "p13",
        "p14",
        "p15",
    }
    rows.loc[5, "time"] = None
    with pytest.raises(UserError, match=r"test: row 6: no time in this row .* 0 others"):
        split(rows, seed=7, shares=shares(by="time"))
    with pytest.raises(UserError, match=r"split.by: is time, but .*map data.columns.time"):
        split(rows.drop(columns="time"), seed=7, shares=shares(by="time"))


def test_users_with_few_pairs_are_not_drawn_as_unseen_ones(shares):
    judged = [*grid(4, 20), ("few", "p1"), ("few", "p2")]
    for seed in range(6):
        prepared = splits.split(
            usable(judged), seed=seed, shares=shares(unseen_users=0.25), min_pairs=3
        )
        users = prepared.users.set_index("user_id")
        assert users["seen"].sum() == 4
        assert users.loc["few", ["seen", "few"]].tolist() == [True, True]
