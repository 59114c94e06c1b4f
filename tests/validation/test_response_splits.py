"""Splits by response: a text is on one side for everybody, and few pairs are lost."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prlhf.data import SPLITS
from prlhf.data.ids import content_hash
from prlhf.data.prompts import canonical_prompt, prompt_id
from prlhf.infra.errors import UserError
from prlhf.ingest.columns import typed_rows
from prlhf.validation.partition import text_sides, text_units
from prlhf.validation.splits import Prepared, split

Judged = tuple[str, str, str, str]


def usable(judged: Iterable[Judged], **columns: object) -> pd.DataFrame:
    """Rows of (user, prompt, chosen, rejected)."""
    names = ["user_id", "prompt", "chosen", "rejected"]
    rows = pd.DataFrame(judged, columns=names)
    rows = rows.assign(row=range(1, len(rows) + 1), source="test", **columns)
    rows["prompt"] = rows["prompt"].map(canonical_prompt)
    rows = typed_rows(rows)
    ids = rows["prompt"].map(prompt_id)
    parts = zip(*(rows[name] for name in names), strict=True)
    return rows.assign(
        prompt_id=ids, opening_id=ids, pair_id=[content_hash(*each) for each in parts]
    )


def statements(people: int, texts: int, each: int, seed: int = 0) -> list[Judged]:
    """Each person judges pairs of neighbours among some texts, all to one prompt."""
    rng = np.random.default_rng(seed)
    found = {
        (f"u{user}", "Agree?", f"t{first:03}", f"t{(first + step) % texts:03}")
        for user in range(people)
        for first, step in zip(rng.integers(0, texts, each), rng.integers(1, 4, each), strict=True)
    }
    return sorted(found)


def texts_of(prepared: Prepared, side: str) -> set[str]:
    pairs = prepared.pairs[prepared.pairs["prompt_split"] == side]
    return {*pairs["chosen"], *pairs["rejected"]}


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40
)
@given(
    judged=st.lists(
        st.tuples(
            st.sampled_from("abcdefg"), st.sampled_from("pq"), st.integers(0, 25), st.integers(1, 9)
        ),
        min_size=20,
        max_size=120,
        unique=True,
    ),
    seed=st.integers(0, 5),
)
def test_no_response_is_on_two_sides_and_what_is_lost_is_said(shares, judged, seed):
    rows = usable([(user, p, f"t{n}", f"t{n + step}") for user, p, n, step in judged])
    try:
        prepared = split(rows, seed=seed, shares=shares(by="response"), min_pairs=1)
    except UserError:
        return
    sides = [texts_of(prepared, side) for side in SPLITS]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    lost = len(rows) - len(prepared.pairs)
    assert (f"{lost} of {len(rows)} pairs" in " ".join(prepared.notes)) == (lost > 0)
    # Of what is left out, each pair touches two sides.
    gone = rows.drop(prepared.pairs.index)
    for chosen, rejected in zip(gone["chosen"], gone["rejected"], strict=True):
        assert not any({chosen, rejected} <= side for side in sides)
    # The same for units within the sides, whose pairs between units have none.
    units: dict[str, set[str]] = {}
    whole = prepared.pairs[prepared.pairs["unit"].notna()]
    for unit, rows_of in whole.groupby("unit"):
        units[str(unit)] = {*rows_of["chosen"], *rows_of["rejected"]}
    everything = [text for found in units.values() for text in found]
    assert len(everything) == len(set(everything))
    assert whole.groupby("unit")["prompt_split"].nunique().eq(1).all()


def test_data_of_a_single_prompt_can_be_used(shares):
    rows = usable(statements(people=60, texts=200, each=20))
    prepared = split(rows, seed=7, shares=shares(by="response", test=0.2), min_pairs=4)
    kept = len(prepared.pairs) / len(rows)
    # Random sides of texts would keep 0.6^2 + 0.2^2 + 0.2^2 = 44 %.
    assert kept > 0.75
    share = prepared.pairs["prompt_split"].value_counts(normalize=True)
    assert share["test"] == pytest.approx(0.2, abs=0.04)
    assert share["validation"] == pytest.approx(0.2, abs=0.04)
    users = prepared.users[prepared.users["seen"]]
    assert ((users["pairs_train"] > 0) & (users["pairs_test"] > 0)).mean() > 0.9
    assert prepared.part("train")["unit"].nunique() >= 10
    assert prepared.part("train")["unit"].notna().mean() > 0.6


def test_the_order_of_rows_does_not_count_and_the_seed_does(shares):
    rows = usable(statements(people=20, texts=60, each=20))
    choice = shares(by="response")
    first = split(rows, seed=7, shares=choice, min_pairs=1)
    mixed = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    again = split(mixed, seed=7, shares=choice, min_pairs=1)
    columns = ["pair_id", "prompt_split", "unit"]
    pd.testing.assert_frame_equal(
        first.pairs[columns].sort_values("pair_id", ignore_index=True),
        again.pairs[columns].sort_values("pair_id", ignore_index=True),
    )
    other = split(rows, seed=8, shares=choice, min_pairs=1)
    assert texts_of(first, "test") != texts_of(other, "test")


def test_prompts_stay_whole_where_people_judged_many(shares):
    """Six answers to each of 40 prompts: no pair is lost, and prompts are not divided."""
    rng = np.random.default_rng(0)
    judged = {
        (f"u{user}", f"p{prompt}", f"p{prompt} a{one}", f"p{prompt} a{(one + step) % 6}")
        for user in range(30)
        for prompt, one, step in zip(
            rng.integers(0, 40, 20), rng.integers(0, 6, 20), rng.integers(1, 6, 20), strict=True
        )
    }
    rows = usable(sorted(judged))
    prepared = split(rows, seed=7, shares=shares(by="response"), min_pairs=1)
    assert len(prepared.pairs) == len(rows)
    assert prepared.notes == []
    assert prepared.pairs.groupby("prompt_id")["prompt_split"].nunique().max() == 1
    assert prepared.pairs.groupby("prompt_id")["unit"].nunique().max() == 1
    share = prepared.pairs["prompt_split"].value_counts(normalize=True)
    assert share.to_dict() == pytest.approx(
        {"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.04
    )


def test_people_who_know_one_prompt_only_have_pairs_on_all_sides(shares):
    """Two consultations with people of their own: neither is held out whole."""
    judged = []
    for topic in ("buses", "schools"):
        for user, _, one, other in statements(people=30, texts=80, each=20):
            judged.append((f"{topic} {user}", topic, f"{topic} {one}", f"{topic} {other}"))
    prepared = split(
        usable(judged), seed=7, shares=shares(by="response", unseen_users=0.0), min_pairs=1
    )
    for topic in ("buses", "schools"):
        pairs = prepared.pairs[prepared.pairs["user_id"].str.startswith(topic)]
        share = pairs["prompt_split"].value_counts(normalize=True)
        assert share.to_dict() == pytest.approx(
            {"train": 0.6, "validation": 0.2, "test": 0.2}, abs=0.06
        )


def test_too_few_responses(shares):
    rows = usable([(f"u{user}", "p", "yes", "no") for user in range(5)])
    with pytest.raises(UserError, match=r"2 distinct responses are too few .*more responses"):
        split(rows, seed=7, shares=shares(by="response"), min_pairs=1)


def test_given_sides_keep_what_is_trained_on_from_being_tested(shares):
    judged = [
        ("a", "p", "x1", "x2"),
        ("a", "p", "x3", "x4"),
        ("a", "p", "y1", "y2"),
        ("a", "p", "y1", "x2"),
        ("a", "p", "z1", "z2"),
        ("a", "p", "z1", "y2"),
        ("a", "p", "w1", "w2"),
    ]
    sides = ["train", "train", "test", "test", "validation", "validation", "test"]
    prepared = split(usable(judged, side=sides), seed=7, shares=shares(by="response"), min_pairs=1)
    assert prepared.pairs["row"].tolist() == [1, 2, 5, 6, 7]
    found = prepared.pairs["prompt_split"].tolist()
    assert found == ["train", "train", "validation", "validation", "test"]
    with pytest.raises(UserError, match="no pair of a seen user is on the test side"):
        split(usable(judged[:6], side=sides[:6]), seed=7, shares=shares(by="response"), min_pairs=1)


def test_validation_is_taken_from_given_training_pairs(shares):
    judged = statements(people=20, texts=60, each=20)
    tested = [{int(one[1:]), int(other[1:])} <= set(range(12)) for *_, one, other in judged]
    sides = ["test" if each else "train" for each in tested]
    choice = shares(by="response", unseen_users=0.0)
    prepared = split(usable(judged, side=sides), seed=7, shares=choice, min_pairs=1)
    found = [texts_of(prepared, side) for side in SPLITS]
    assert all(found)
    assert not found[0] & found[1]
    assert not (found[0] | found[1]) & found[2]
    assert found[2] <= {f"t{n:03}" for n in range(12)}


def test_components_are_parted_by_what_hangs_together():
    """Two cliques of ten texts with one pair between them, judged by the same people."""
    inner = [(i, j) for i in range(10) for j in range(i)]
    first, second = (
        np.array([a for a, _ in inner] + [10 + a for a, _ in inner] + [0]),
        np.array([b for _, b in inner] + [10 + b for _, b in inner] + [19]),
    )
    users = np.arange(len(first)) % 3
    sides = text_sides(first, second, users, validation=0.0, test=0.5)
    assert set(sides[:10].tolist()) in ({0, 2}, {0}, {2})
    assert (sides[first] == sides[second]).mean() > 0.5
    units = text_units(first, second, users, largest=1.0)
    assert len(set(units.tolist())) > 2
    apart = text_units(first[:-1], second[:-1], np.arange(90), largest=1.0)
    assert apart.shape == (20,)
