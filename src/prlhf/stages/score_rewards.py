"""Stage `score_rewards`: what a trained reward model thinks of answers and held-out choices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from prlhf import distributed
from prlhf.data.contract import messages
from prlhf.evaluation.comparisons import strangers
from prlhf.evaluation.rewarded import ABOUT, REWARDS, questions
from prlhf.io import read_parquet, write_json, write_parquet
from prlhf.models.load import BASE_PATH
from prlhf.models.reward_model import PersonalizedRewardModel
from prlhf.training.reference_files import text_key

if TYPE_CHECKING:
    from prlhf.params import CompareParams, ModelParams

PARAMS: Final = ("model", "compare", "judge.unseen_users")

PREPARED: Final = Path("data/prepared")
GENERATED: Final = Path("data/generated")
OUTPUT: Final = Path("data/scores")


def run(*, model: ModelParams, compare: CompareParams, unseen_users: int | None, name: str) -> None:
    """Write `data/scores/reward_<name>/{rewards.parquet,about.json}`, for the judge stage.

    Only users that the reward model knows are asked for.

    Raises:
        UserError: there is no such reward model.
    """
    reward_model = PersonalizedRewardModel.from_pretrained(
        Path("models") / f"reward_{name}", base=BASE_PATH, dtype=model.dtype
    )
    known = set(reward_model.user_model.users)
    users = read_parquet(PREPARED / "users.parquet", ["user_id", "group", "seen", "user_text"])
    generated = {method: read_parquet(GENERATED / f"{method}.parquet") for method in compare.all}
    asked = questions(
        generated,
        strangers(users, generated.values(), unseen_users),
        read_parquet(PREPARED / "test.parquet"),
    )
    asked = asked[asked["user_id"].isin(known)]
    texts = None
    if reward_model.lm.encoder.reads_text:
        texts = asked["user_id"].map(users.set_index("user_id")["user_text"]).tolist()
    rewards = reward_model.reward(
        list(map(messages, asked["prompt"])),
        asked["text"].tolist(),
        asked["user_id"].tolist(),
        texts,
        label=f"score_rewards {name}",
    )
    if not distributed.is_main():
        return
    keys = list(map(text_key, asked["prompt"], asked["text"]))
    table = pd.DataFrame({"user_id": asked["user_id"].tolist(), "text": keys, "reward": rewards})
    folder = OUTPUT / f"reward_{name}"
    write_parquet(folder / REWARDS, table)
    origin = reward_model.lm.about["learned_from"]
    write_json(folder / ABOUT, {"model": name, "learned_from": origin, "users": len(known)})
