"""Stage `train_reward_model`: a personalised reward model, on a method's kind of user model."""

from typing import Final

from prlhf.data import as_trained, require_user_texts
from prlhf.data.reference import SET_ASIDE, read_pairs
from prlhf.infra import distributed
from prlhf.infra.io import checkpoint_directory, discard, read_parquet, run_key
from prlhf.infra.tables import write_csv
from prlhf.models.base import Encoder, load_base
from prlhf.models.model_card import describe_data, validation_figures, write_model_card
from prlhf.models.pretrained import load_pretrained, pairs_of
from prlhf.params import MethodParams, ModelParams, OptimizerParams, RewardTrainParams, TokenParams
from prlhf.rewards.lm import PersonalizedRewardModel
from prlhf.rewards.training import RewardTrainer, divide
from prlhf.stages.paths import (
    BASE,
    PREPARED,
    PRETRAINED,
    REFERENCE,
    REWARD_REPORTS,
    USERS,
    reward_model_directory,
    split_table,
)
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import account, build_model, fit

PARAMS: Final = ("seed", "model", "tokens", "train_reward_model", "optimizer", "methods.*")

SPLITS: Final = ("train", "validation", "test", "unseen")


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    train_reward_model: RewardTrainParams,
    optimizer: OptimizerParams,
    method: MethodParams,
    name: str,
) -> None:
    """Write `models/reward_<name>` and its training curves, `reports/reward_models/<name>.csv`.

    Raises:
        UserError: LoRA finds no layer of the given names; the method reads users' texts but there
            are none; or there is nothing to learn from.
    """
    train = train_reward_model
    settings = {"model": model, "tokens": tokens, "reward_model": train, "optimizer": optimizer}
    inputs = [BASE, *map(split_table, SPLITS), USERS, REFERENCE / SET_ASIDE, PRETRAINED]
    key = run_key({"seed": seed, "method": method, **settings}, inputs)
    distributed.require_agreement(key)
    checkpoints = checkpoint_directory(f"reward_{name}", key)

    tables = {split: read_pairs(PREPARED, REFERENCE, split) for split in SPLITS}
    tables["train"] = as_trained(tables["train"], read_parquet(USERS))
    data = divide(tables, train.pairs)
    if method.text:
        require_user_texts(data.learned["user_text"], f"params.yaml: methods.{name}.text")

    base = load_base(BASE, model.dtype)
    encoder = Encoder.from_params(base.chat, tokens, text=method.text)
    pretrained = load_pretrained(PRETRAINED)
    if data.users is not None:
        # Pretraining learned from the training pairs.
        pretrained = pretrained.untrained(data.users, pairs_of(data.learned, len(data.users)))
    about = {
        "reward_model": name,
        "learned_from": train.pairs,
        "seed": seed,
        "objective": {"alpha": train.alpha},
        "optimizer": optimizer.model_dump(),
        "data": describe_data(PREPARED, SPLITS, data.learned),
    }
    user_model = pretrained.initial(method.kind, base, text=method.text)
    lm = build_model(base, user_model, encoder, optimizer.lora, seed=seed, about=about)
    reward_model = PersonalizedRewardModel(lm)
    trained = fit(
        RewardTrainer,
        reward_model,
        train,
        optimizer,
        {
            "train": PreferenceDataset(data.learned, None, encoder),
            "validation": PreferenceDataset(data.watched, None, encoder),
        },
        checkpoints=checkpoints,
        seed=seed,
        label=f"train_reward_model {name}",
    )
    lm.about["training"] = account([trained])
    lm.about["validation"] = validation_figures([(trained.curves, trained.kept_step)])
    with distributed.output(reward_model_directory(name)) as directory:
        reward_model.save_pretrained(directory)
        if distributed.is_main():
            write_model_card(directory)
    if distributed.is_main():
        path = REWARD_REPORTS / f"{name}.csv"
        write_csv(path, trained.curves)
        discard(checkpoints)
