"""Stage `score_rewards`: what a trained reward model thinks of held-out pairs and of answers."""

from typing import Final

import pandas as pd

from prlhf.data import ROUNDING, agreement
from prlhf.data.prompts import messages
from prlhf.data.reference import read_pairs, text_key
from prlhf.infra import distributed
from prlhf.infra.io import read_parquet, write_json, write_parquet
from prlhf.infra.progress import say
from prlhf.judging.comparisons import judged_unseen_users, texts_to_reward
from prlhf.params import ModelParams
from prlhf.rewards.lm import PersonalizedRewardModel, score_held_out
from prlhf.stages.paths import (
    BASE,
    GENERATED,
    PREPARED,
    REFERENCE,
    USERS,
    reward_model_directory,
    reward_scores,
)

PARAMS: Final = ("model", "compare.all", "judge.unseen_users")


def run(*, model: ModelParams, compared: list[str], unseen_users: int | None, name: str) -> None:
    """Write `data/scores/reward_<name>`: held-out pairs, and the rewards that the judge needs.

    `pairs.parquet` has the reward differences of held-out pairs, `rewards.parquet` and `about.json`
    are for the judge stage and hold only users that the reward model knows.

    Raises:
        UserError: there is no such reward model.
    """
    reward_model = PersonalizedRewardModel.from_pretrained(
        reward_model_directory(name), base=BASE, dtype=model.dtype
    )
    label = f"score_rewards {name}"
    test, unseen = (read_pairs(PREPARED, REFERENCE, split) for split in ("test", "unseen"))
    pairs = score_held_out(reward_model, test, unseen, label=label)
    tested = pairs[pairs["split"] == "test"]
    own, generic = (
        agreement(tested.loc[tested["condition"] == condition, "margin"], ROUNDING).mean()
        for condition in ("user", "generic")
    )
    say(f"{label}: held-out accuracy {own:.3f} with users, {generic:.3f} without")

    users = read_parquet(USERS, ["user_id", "group", "seen", "user_text"])
    generated = {method: read_parquet(GENERATED / f"{method}.parquet") for method in compared}
    strangers = judged_unseen_users(users, generated.values(), unseen_users)
    asked = texts_to_reward(generated, strangers, test)
    asked = asked[asked["user_id"].isin(reward_model.user_model.users)]
    texts = None
    if reward_model.lm.encoder.reads_text:
        texts = asked["user_id"].map(users.set_index("user_id")["user_text"]).tolist()
    rewards = reward_model.reward(
        list(map(messages, asked["prompt"])),
        asked["text"].tolist(),
        asked["user_id"].tolist(),
        texts,
        label=label,
    )
    keys = list(map(text_key, asked["prompt"], asked["text"]))
    table = pd.DataFrame({"user_id": asked["user_id"].tolist(), "text": keys, "reward": rewards})
    about = {
        "model": name,
        "learned_from": reward_model.lm.about["learned_from"],
        "users": len(reward_model.user_model.users),
    }
    with distributed.output(reward_scores(name)) as directory:
        write_parquet(directory / "pairs.parquet", pairs)
        write_parquet(directory / "rewards.parquet", table)
        write_json(directory / "about.json", about)
