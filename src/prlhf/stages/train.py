"""Stage `train`: one method's adapter and user model, by P-DPO."""

from typing import Final

import pandas as pd

from prlhf.data import require_user_texts
from prlhf.data.reference import load_reference
from prlhf.infra import distributed
from prlhf.infra.io import CHECKPOINTS, discard, read_parquet, run_key, write_text
from prlhf.models.base import Encoder, load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import GroupUserModel, UniformUserModel, UserModel, load_pretrained
from prlhf.params import MethodParams, ModelParams, OptimizerParams, TokenParams, TrainParams
from prlhf.stages.paths import (
    BASE,
    CURVES,
    PRETRAINED,
    REFERENCE,
    USERS,
    method_directory,
    split_table,
)
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import Pairs, build_model, fit, known_groups, train_groups
from prlhf.training.trainer import PDPOTrainer

PARAMS: Final = ("seed", "model", "tokens", "train", "optimizer", "methods.*")

SPLITS: Final = ("train", "validation")


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    train: TrainParams,
    optimizer: OptimizerParams,
    method: MethodParams,
    name: str,
) -> None:
    """Write `models/<name>` and `reports/curves/<name>.csv`.

    Raises:
        UserError: LoRA finds no layer of the given names; the method reads users' texts but there
            are none; or it has an adapter per group but there are no groups.
    """
    tables = {split: read_parquet(split_table(split)) for split in SPLITS}
    if method.text:
        require_user_texts(tables["train"]["user_text"], f"params.yaml: methods.{name}.text")
    settings = {"model": model, "tokens": tokens, "train": train, "optimizer": optimizer}
    inputs = [BASE, *map(split_table, SPLITS), USERS, REFERENCE, PRETRAINED]
    key = run_key({"seed": seed, "method": method, **settings}, inputs)
    distributed.require_agreement(key)
    checkpoints = CHECKPOINTS / f"{name}-{key}"

    base = load_base(BASE, model.dtype)
    encoder = Encoder.from_params(base.tokenizer, tokens, text=method.text)
    logps = load_reference(REFERENCE).logps
    pairs = {
        split: PreferenceDataset(table, logps, encoder, reference_text=tokens.reference_text)
        for split, table in tables.items()
    }
    groups = known_groups(read_parquet(USERS)) if method.kind == "group" else []
    start = load_pretrained(PRETRAINED).initial(method.kind, base, text=method.text, groups=groups)
    about = {"method": name, "objective": train.model_dump(include={"alpha", "beta", "loss"})}

    def fresh(user_model: UserModel) -> PersonalizedLM:
        return build_model(base, user_model, encoder, optimizer.lora, seed=seed, about=about)

    def trained(lm: PersonalizedLM, pairs: Pairs, part: str = "", group: str = "") -> pd.DataFrame:
        return fit(
            PDPOTrainer,
            lm,
            train,
            optimizer,
            pairs,
            checkpoints=checkpoints / part,
            seed=seed,
            label=f"train {name}: {group}" if group else f"train {name}",
        )

    with distributed.output(method_directory(name)) as directory:
        if isinstance(start, GroupUserModel):
            lm, curves = train_groups(
                start,
                pairs,
                fresh=lambda: fresh(UniformUserModel(start.users, 0, base.hidden_size)),
                train=trained,
                directory=directory,
            )
        else:
            lm = fresh(start)
            curves = trained(lm, pairs)
        lm.save_pretrained(directory)
    if distributed.is_main():
        write_text(CURVES / f"{name}.csv", curves.to_csv(index=False, lineterminator="\n"))
        discard(checkpoints)
