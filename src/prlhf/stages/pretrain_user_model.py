"""Stage `pretrain_user_model`: who the users are, before the language model is tuned."""

from collections.abc import Mapping
from typing import Any, Final

import pandas as pd
import torch

from prlhf.data.reference import Reference, load_reference
from prlhf.infra.io import atomic_path, read_parquet, write_json
from prlhf.infra.progress import say
from prlhf.models.base import Encoder, load_base, read_source
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import Pretrained, kind_of, variant
from prlhf.params import MethodParams, ModelParams, PretrainParams, TokenParams, UserModelParams
from prlhf.rewards.features import Examples, fit_feature_reward, save_feature_reward
from prlhf.stages.paths import BASE, PRETRAIN, PRETRAINED, REFERENCE, USERS, split_table
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import train_soft_prompts

PARAMS: Final = ("seed", "model", "tokens", "user_model", "pretrain", "methods", "compare.trained")

REWARD_MODEL: Final = "reward_model"
"""Directory in `models/user_model` of the reward model that `pretrain.method: reward` fits."""


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    user_model: UserModelParams,
    pretrain: PretrainParams,
    methods: Mapping[str, MethodParams],
    trained: list[str],
) -> None:
    """Write `models/user_model`, the reward model in it, and `reports/pretrain.json`."""
    train = read_parquet(split_table("train"))
    reference = load_reference(REFERENCE)
    table = read_parquet(USERS, ["user_id", "user_index", "seen"])
    users = table[table["seen"]].sort_values("user_index")["user_id"].tolist()
    clusters = None if user_model.clusters == "auto" else user_model.clusters
    sizes = user_model.model_dump(exclude={"max_clusters"})
    pretrained = Pretrained(users, sizes | {"clusters": clusters or 1, "seed": seed})
    report: dict[str, Any] = {"method": pretrain.method}
    fitted = None
    if pretrain.method == "reward":
        fitted, figures = fit_feature_reward(
            examples(train, reference),
            examples(read_parquet(split_table("validation")), reference),
            len(users),
            clusters=clusters,
            **pretrain.model_dump(include={"rank", "steps", "lr", "l2", "alpha"}),
            **user_model.model_dump(include={"max_clusters", "generic_pull"}),
            seed=seed,
        )
        pretrained.weights = fitted.weights
        assignments = dict(zip(users, fitted.assignments.tolist(), strict=True))
        report |= {**figures, "assignments": assignments}
        accuracy = figures["accuracy"]
        say(
            f"pretrain_user_model: {fitted.clusters} clusters; validation accuracy "
            f"{accuracy['personalised']:.3f} with users, {accuracy['generic']:.3f} without"
        )
    elif pretrain.method == "soft_prompt":
        base = load_base(BASE, model.dtype)
        report["loss"] = {}
        for kind, text in sorted({(methods[name].kind, methods[name].text) for name in trained}):
            if not kind_of(kind).has_embeddings:
                continue
            encoder = Encoder.from_params(base.tokenizer, tokens, text=text)
            start = pretrained.initial(kind, base, text=text)
            lm = PersonalizedLM(base, base.model, start, encoder)
            pairs = PreferenceDataset(
                train, reference.logps, encoder, reference_text=tokens.reference_text
            )
            name = variant(kind, text)
            report["loss"][name] = train_soft_prompts(
                lm, pairs, pretrain, seed=seed, label=f"soft_prompt {name}"
            )
            pretrained.trained[name] = lm.user_model.cpu()
    with atomic_path(PRETRAINED, directory=True) as directory:
        pretrained.save(directory)
        if fitted is not None:
            (directory / REWARD_MODEL).mkdir()
            save_feature_reward(
                fitted,
                directory / REWARD_MODEL,
                users=users,
                base=BASE,
                source=read_source(BASE),
                max_prompt=tokens.max_prompt,
                max_response=tokens.max_response,
                about={"learned_from": "train", "accuracy": report["accuracy"]},
            )
    write_json(PRETRAIN, report)


def examples(table: pd.DataFrame, reference: Reference) -> Examples:
    """The pairs of a prepared split as feature differences."""
    return Examples(
        reference.differences(table), torch.tensor(table["user_index"].to_numpy(copy=True))
    )
