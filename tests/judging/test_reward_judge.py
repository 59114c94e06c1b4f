"""A reward model as judge: it learns users' tastes, and never from what it judges."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch

from prlhf.data.reference import text_key
from prlhf.infra.errors import UserError
from prlhf.judging.reward import FeatureRewardJudge, Features, RewardJudge
from prlhf.params import FeatureRewardJudgeParams

PARAMS = FeatureRewardJudgeParams(pairs="held_out", folds=4, tie=0.02)
PROMPTS = [f"p{i}" for i in range(12)]
TASTE = {"ann": 1, "bob": 1, "cas": -1}
WORDS = 6
"""Texts are numbers of words, "0" to "5"; the first feature is that number."""


@pytest.fixture(scope="module")
def features() -> Features:
    rng = np.random.default_rng(0)
    texts = [(prompt, str(words)) for prompt in PROMPTS for words in range(WORDS)]
    values = rng.normal(0, 0.3, (len(texts), 4))
    values[:, 0] += [int(words) for _, words in texts]
    rows = {text_key(*text): row for row, text in enumerate(texts)}
    return Features(rows, torch.tensor(values, dtype=torch.float32))


def choices(prompts=PROMPTS, users=TASTE) -> pd.DataFrame:
    """Each user's choices between a longer and a shorter text."""
    rng = np.random.default_rng(1)
    rows = []
    for user in users:
        for prompt in prompts:
            short, long = sorted(rng.permutation(WORDS)[:2])
            taken, left = (long, short) if TASTE[user] > 0 else (short, long)
            rows.append((user, prompt, str(taken), str(left)))
    return pd.DataFrame(rows, columns=["user_id", "prompt", "chosen", "rejected"])


def fit(pairs, features, prompts=PROMPTS) -> FeatureRewardJudge:
    return FeatureRewardJudge.fit(pairs, prompts, features, PARAMS, 7, {"pairs": len(pairs)})


def questions(first, second, users=tuple(TASTE), prompts=PROMPTS) -> pd.DataFrame:
    rows = [(user, prompt, first, second) for user in users for prompt in prompts]
    return pd.DataFrame(rows, columns=["user_id", "prompt", "first", "second"])


def test_it_judges_by_each_users_own_taste(features):
    judge = fit(choices(), features)
    assert judge.report() == {"folds": 4, "pairs": 36}
    asked = questions("5", "0")
    assert judge.knows(asked).all()
    found = judge.verdicts(asked)
    wanted = [TASTE[user] for user in asked["user_id"]]
    assert found["verdict"].tolist() == wanted
    # Exchanged answers exchange the verdict.
    exchanged = judge.verdicts(questions("0", "5"))
    assert exchanged["verdict"].tolist() == [-verdict for verdict in wanted]
    assert np.allclose(found["probability"] + exchanged["probability"], 1)


def test_a_text_against_itself_and_small_differences_tie(features):
    judge = replace(fit(choices(), features), tie=0.0)
    assert judge.verdicts(questions("3", "3"))["verdict"].tolist() == [0] * 36
    assert (judge.verdicts(questions("5", "0"))["verdict"] != 0).all()
    found = replace(judge, tie=0.3).verdicts(questions("3", "2"))
    decided = (found["probability"] - 0.5).abs() > 0.3
    assert (found["verdict"] != 0).tolist() == decided.tolist()
    assert 0 < decided.sum() < len(found)


def test_what_rounding_decides_is_a_tie():
    @dataclass(frozen=True)
    class Given(RewardJudge):
        column = "probability"

        def knows(self, questions):
            return np.ones(len(questions), dtype=bool)

        def log_odds(self, questions):
            return questions["odds"].to_numpy()

    odds = [5.0, 2e-3, 9e-4, 1e-6, 0.0, -1e-6, -9e-4, -2e-3, -5.0, float("nan")]
    found = Given(0.0, {}).verdicts(pd.DataFrame({"odds": odds}))
    assert found["verdict"].tolist() == [1, 1, 0, 0, 0, 0, 0, -1, -1, 0]


def test_choices_about_a_prompt_say_nothing_in_its_own_judgement(features):
    pairs = choices()
    judge = fit(pairs, features)
    about = pairs["prompt"] == "p3"
    turned = pairs.copy()
    turned.loc[about, ["chosen", "rejected"]] = pairs.loc[about, ["rejected", "chosen"]].to_numpy()
    others = fit(turned, features)

    def odds(model, prompt):
        return model.log_odds(questions("5", "0", prompts=[prompt]))

    assert np.array_equal(odds(judge, "p3"), odds(others, "p3"))
    # Nor in that of the prompts dealt into the same fold; in all the others they do.
    changed = [p for p in PROMPTS if not np.array_equal(odds(judge, p), odds(others, p))]
    assert changed == [p for p in PROMPTS if judge.fold_of[p] != judge.fold_of["p3"]]


def test_folds_are_equal_parts_that_stay(features):
    fold_of = fit(choices(), features).fold_of
    sizes = pd.Series(fold_of).value_counts()
    assert sizes.tolist() == [3, 3, 3, 3]
    assert fit(choices().iloc[::-1], features).fold_of == fold_of


def test_users_are_known_from_other_prompts_only(features):
    pairs = pd.concat([choices(users=["ann", "bob"]), choices(["p0"], ["cas"])], ignore_index=True)
    judge = fit(pairs, features)
    fold = judge.fold_of
    asked = questions("5", "0", users=["ann", "cas", "stranger"])
    wanted = [
        row.user_id == "ann" or (row.user_id == "cas" and fold[row.prompt] != fold["p0"])
        for row in asked.itertuples()
    ]
    assert judge.knows(asked).tolist() == wanted
    stranger = asked[asked["user_id"] == "stranger"]
    assert np.isnan(judge.log_odds(stranger)).all()
    assert judge.knows(asked.assign(prompt="never judged")).sum() == 0


def test_pairs_about_prompts_that_are_not_judged_serve_all_folds(features):
    judge = fit(choices(PROMPTS[:8]), features, prompts=PROMPTS[8:])
    asked = questions("5", "0", prompts=PROMPTS[8:])
    assert judge.verdicts(asked)["verdict"].tolist() == [TASTE[u] for u in asked["user_id"]]


def test_without_pairs_about_other_prompts(features):
    with pytest.raises(UserError, match=r"judge\.kind: there are no pairs about other prompts"):
        fit(choices(["p0"]), features, prompts=["p0"])


def test_texts_in_both_tables_have_the_features_of_the_second():
    one = Features({"a": 0, "b": 1}, torch.tensor([[1.0], [2.0]]))
    other = Features({"b": 0}, torch.tensor([[3.0]]))
    both = one | other
    assert [float(both.values[both.rows[key]]) for key in "ab"] == [1.0, 3.0]
