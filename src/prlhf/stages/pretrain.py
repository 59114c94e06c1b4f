"""Stage `pretrain_user_model`: who the users are, before the language model is tuned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import torch

from prlhf.io import atomic_path, read_parquet, write_json
from prlhf.models.base import load_base
from prlhf.models.feature_reward import FeatureReward, save_feature_reward
from prlhf.models.personalized import PersonalizedLM
from prlhf.progress import say
from prlhf.training.adapted import encoder_of
from prlhf.training.pairs import PairTable
from prlhf.training.pretrain import Examples, RewardOptions, train_reward_model
from prlhf.training.pretrained import Pretrained, variant
from prlhf.training.reference_files import Reference, load_reference
from prlhf.training.soft_prompt import train_soft_prompts

if TYPE_CHECKING:
    from prlhf.params import (
        CompareParams,
        MethodParams,
        ModelParams,
        PretrainParams,
        TokenParams,
        UserModelParams,
    )

PARAMS: Final = ("seed", "model", "tokens", "user_model", "pretrain", "methods", "compare")

BASE: Final = Path("models/base")
PREPARED: Final = Path("data/prepared")
REFERENCE: Final = Path("data/reference")
OUTPUT: Final = Path("models/user_model")
SUMMARY: Final = Path("reports/pretrain.json")
REWARD_MODEL: Final = "reward_model"
"""Directory in `OUTPUT` of what `pretrain.method: reward` fits."""


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    user_model: UserModelParams,
    pretrain: PretrainParams,
    methods: Mapping[str, MethodParams],
    compare: CompareParams,
) -> None:
    """Write `models/user_model`, the reward model in it, and `reports/pretrain.json`."""
    tables = {
        split: read_parquet(PREPARED / f"{split}.parquet") for split in ("train", "validation")
    }
    users = seen_users(read_parquet(PREPARED / "users.parquet"))
    reference = load_reference(REFERENCE)
    options = {
        "tokens": user_model.tokens,
        "clusters": 1 if user_model.clusters == "auto" else user_model.clusters,
        "init_scale": user_model.init_scale,
        "generic_pull": user_model.generic_pull,
        "offset_penalty": user_model.offset_penalty,
        "seed": seed,
    }
    pretrained = Pretrained(users, options)
    report: dict[str, Any] = {"method": pretrain.method}
    fitted = None
    if pretrain.method == "reward":
        fitted = train_reward_model(
            examples(tables["train"], reference),
            examples(tables["validation"], reference),
            len(users),
            RewardOptions(
                alpha=pretrain.alpha,
                rank=pretrain.rank,
                steps=pretrain.steps,
                lr=pretrain.lr,
                l2=pretrain.l2,
                clusters=None if user_model.clusters == "auto" else user_model.clusters,
                max_clusters=user_model.max_clusters,
                generic_pull=user_model.generic_pull,
            ),
            seed,
        )
        pretrained.weights = fitted.weights
        assignments = dict(zip(users, fitted.assignments.tolist(), strict=True))
        report |= {**fitted.report, "assignments": assignments}
        accuracy = fitted.report["accuracy"]
        say(
            f"pretrain_user_model: {fitted.clusters} clusters; validation accuracy "
            f"{accuracy['personalised']:.3f} with users, {accuracy['generic']:.3f} without"
        )
    elif pretrain.method == "soft_prompt":
        base = load_base(BASE, model.dtype)
        report["loss"] = {}
        wanted = {(methods[name].kind, methods[name].text) for name in compare.trained}
        for kind, text in sorted(wanted):
            if kind in ("uniform", "group"):
                continue
            encoder = encoder_of(base, tokens, text=text)
            pairs = PairTable(
                tables["train"], reference.logps, encoder, reference_text=tokens.reference_text
            )
            name = variant(kind, text)
            start = pretrained.initial(kind, base, text=text)
            lm = PersonalizedLM(base, base.model, start, encoder)
            report["loss"][name] = train_soft_prompts(
                lm,
                pairs,
                alpha=pretrain.alpha,
                beta=pretrain.soft_prompt_beta,
                steps=pretrain.soft_prompt_steps,
                lr=pretrain.soft_prompt_lr,
                batch_size=pretrain.soft_prompt_batch_size,
                seed=seed,
                label=f"soft_prompt {name}",
            )
            pretrained.trained[name] = lm.user_model.cpu()
    with atomic_path(OUTPUT, directory=True) as directory:
        pretrained.save(directory)
        if fitted is not None:
            (directory / REWARD_MODEL).mkdir()
            save_feature_reward(
                FeatureReward(fitted.projection, fitted.directions, fitted.weights),
                directory / REWARD_MODEL,
                users=users,
                base=BASE,
                max_prompt=tokens.max_prompt,
                max_response=tokens.max_response,
                about={"learned_from": "train", "accuracy": fitted.report["accuracy"]},
            )
    write_json(SUMMARY, report)


def seen_users(users: pd.DataFrame) -> list[str]:
    """Ids of the seen users in the order of their indices 1..N."""
    seen = users[users["seen"]].sort_values("user_index")
    return [str(user) for user in seen["user_id"]]


def examples(table: pd.DataFrame, reference: Reference) -> Examples:
    """A prepared split as feature differences."""
    return Examples(
        reference.differences(table), torch.tensor(table["user_index"].to_numpy(copy=True))
    )
