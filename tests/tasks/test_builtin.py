"""The built-in data sets, samples of data sets, and label noise."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from prlhf.data import ROW_COLUMNS
from prlhf.infra.errors import UserError
from prlhf.ingest.sources import sample_rows, simulated_rows
from prlhf.tasks import Recipe, SimulatedUser, built_in_tasks
from prlhf.tasks.length import TASK as LENGTH
from prlhf.tasks.style import OPPOSITES
from prlhf.tasks.style import TASK as STYLE


def judgements(frame: pd.DataFrame, user: str) -> list[tuple[str, str, str]]:
    found = frame[frame["user_id"] == user]
    return list(zip(found["prompt"], found["chosen"], found["rejected"], strict=True))


def test_length_users_and_their_tastes(seed_root):
    frame = simulated_rows(LENGTH, seed=7, pairs_per_user=6, root=seed_root)
    assert tuple(frame.columns) == ROW_COLUMNS
    users = frame.drop_duplicates("user_id")
    tastes = Counter(zip(users["group"], users["unseen"], strict=True))
    assert tastes == {
        ("longer", False): 7,
        ("shorter", False): 3,
        ("longer", True): 3,
        ("shorter", True): 1,
    }
    assert frame["user_id"].value_counts().unique().tolist() == [6]
    assert frame["row"].tolist() == list(range(1, len(frame) + 1))
    words = frame[["chosen", "rejected"]].map(lambda text: len(text.split()))
    longer = frame["group"] == "longer"
    assert (words.loc[longer, "chosen"] >= 1.5 * words.loc[longer, "rejected"]).all()
    assert (words.loc[~longer, "rejected"] >= 1.5 * words.loc[~longer, "chosen"]).all()
    # Of the fixture's lengths, 7 against 5 words is the one pair too close to count.
    assert {5, 7} not in [set(pair) for pair in words.itertuples(index=False, name=None)]
    assert {3, 12} in [set(pair) for pair in words.itertuples(index=False, name=None)]


def test_a_recipe_bounds_words_sentences_and_lines():
    recipe = Recipe("", "", (), 3, 6, max_tokens=9, max_sentences=2, max_lines=3)
    assert all(map(recipe.accepts, ("One two three.", "One two.\n\nThree four!")))
    for text in ("One two.", "1 2 3 4 5 6 7.", "1. 2. 3.", "1 2\n\n3\n4.", "One two three", ""):
        assert not recipe.accepts(text)


@pytest.mark.parametrize("name", ["length", "style"])
def test_users_say_what_they_want(seed_root, name):
    """Each group in words of its own, which name what the oracle measures."""
    frame = simulated_rows(built_in_tasks()[name], seed=7, pairs_per_user=3, root=seed_root)
    said = frame.drop_duplicates(["group", "user_text"])
    assert dict(zip(said["group"], said["user_text"], strict=True)) == {
        group: each.says for group, each in built_in_tasks()[name].groups.items()
    }
    assert said["user_text"].is_unique
    assert "short" in LENGTH.groups["shorter"].says
    assert "long" in LENGTH.groups["longer"].says
    assert all(group in STYLE.groups[group].says for group in STYLE_WORDS)


STYLE_WORDS = {"simple", "expert", "concise", "thorough", "warm"}


def test_style_users_want_their_own_instruction(seed_root):
    frame = simulated_rows(STYLE, seed=7, pairs_per_user=6, root=seed_root)
    assert frame["user_id"].nunique() == 6
    assert not frame["unseen"].any()
    assert frame["unseen"].notna().all()
    for group, chosen, rejected in frame[["group", "chosen", "rejected"]].to_numpy():
        assert f"A {group} answer" in chosen
        assert f"A {OPPOSITES[group]} answer" in rejected
    assert all(OPPOSITES[other] == taste for taste, other in OPPOSITES.items())
    assert set(frame["group"]) == set(OPPOSITES)


@pytest.mark.parametrize("name", ["length", "style"])
def test_the_seed_decides(seed_root, name):
    first, again, other = (
        simulated_rows(built_in_tasks()[name], seed=seed, pairs_per_user=6, root=seed_root)
        for seed in (7, 7, 8)
    )
    pd.testing.assert_frame_equal(first, again)
    assert first["user_id"].tolist() == other["user_id"].tolist()
    assert first["prompt"].tolist() != other["prompt"].tolist()


def test_users_draw_apart_and_more_pairs_only_add(seed_root):
    few = simulated_rows(LENGTH, seed=7, pairs_per_user=4, root=seed_root)
    many = simulated_rows(LENGTH, seed=7, pairs_per_user=9, root=seed_root)
    assert len({tuple(judgements(few, user)) for user in few["user_id"].unique()}) == 14
    larger = replace(LENGTH, users=(SimulatedUser("aaron", "longer"), *LENGTH.users))
    grown = simulated_rows(larger, seed=7, pairs_per_user=4, root=seed_root)
    for user in few["user_id"].unique():
        assert judgements(many, user)[:4] == judgements(few, user)
        assert judgements(grown, user) == judgements(few, user)


def test_prompts_come_once_until_all_are_used(seed_root):
    twelve = simulated_rows(LENGTH, seed=7, pairs_per_user=12, root=seed_root)
    assert (twelve.groupby("user_id")["prompt"].nunique() == 12).all()
    most = simulated_rows(LENGTH, seed=7, pairs_per_user=36, root=seed_root)
    assert not most.duplicated(["user_id", "prompt", "chosen", "rejected"]).any()
    assert (most.groupby("user_id")["prompt"].value_counts() == 3).all()
    with pytest.raises(UserError, match="36 distinct pairs for user ada, 37 are asked for"):
        simulated_rows(LENGTH, seed=7, pairs_per_user=37, root=seed_root)


def test_stored_responses_that_are_missing_or_damaged(seed_root):
    path = seed_root / "style/responses.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    broken = json.dumps(json.loads(lines[1]) | {"response": None})
    path.write_bytes(gzip.compress("\n".join([lines[0], broken, *lines[2:]]).encode()))
    with pytest.raises(UserError, match='responses.jsonl.gz:2: no text in "response"'):
        simulated_rows(STYLE, seed=7, pairs_per_user=2, root=seed_root)
    path.unlink()
    with pytest.raises(UserError, match="git checkout"):
        simulated_rows(STYLE, seed=7, pairs_per_user=2, root=seed_root)


def test_samples_keep_order_and_hang_on_the_seed(seed_root):
    rows = simulated_rows(LENGTH, seed=7, pairs_per_user=6, root=seed_root)
    assert sample_rows(rows, seed=7, max_users=None, max_rows=None).equals(rows)
    assert sample_rows(rows, seed=7, max_users=99, max_rows=9999).equals(rows)
    some = sample_rows(rows, seed=7, max_users=5, max_rows=20)
    assert len(some) == 20
    assert some["user_id"].nunique() <= 5
    assert some["row"].is_monotonic_increasing
    assert some.equals(sample_rows(rows, seed=7, max_users=5, max_rows=20))
    assert not some.equals(sample_rows(rows, seed=8, max_users=5, max_rows=20))
    five = set(sample_rows(rows, seed=7, max_users=5, max_rows=None)["user_id"])
    assert five < set(sample_rows(rows, seed=7, max_users=6, max_rows=None)["user_id"])


def test_rows_without_a_user_are_no_users_sample(seed_root):
    rows = simulated_rows(LENGTH, seed=7, pairs_per_user=6, root=seed_root)
    rows.loc[3, "user_id"] = None
    assert sample_rows(rows, seed=7, max_users=14, max_rows=None)["user_id"].notna().all()
    assert len(sample_rows(rows, seed=7, max_users=None, max_rows=len(rows))) == len(rows)
