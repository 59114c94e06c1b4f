"""Stage `train`: one method's adapter and user model, by P-DPO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from prlhf import distributed
from prlhf.data.contract import require_stated
from prlhf.io import read_parquet, write_text
from prlhf.models.base import load_base
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.user_model import UniformUserModel, UserModel
from prlhf.training.adapted import adapted, encoder_of
from prlhf.training.checkpoints import ROOT, discard, run_key
from prlhf.training.finetune import finetune
from prlhf.training.groups import group_user_model, train_groups
from prlhf.training.pairs import Pair, PairTable
from prlhf.training.pretrained import load_pretrained
from prlhf.training.reference_files import load_reference

if TYPE_CHECKING:
    from prlhf.params import MethodParams, ModelParams, TokenParams, TrainParams

PARAMS: Final = ("seed", "model", "tokens", "train", "methods.*")

BASE: Final = Path("models/base")
PREPARED: Final = Path("data/prepared")
REFERENCE: Final = Path("data/reference")
PRETRAINED: Final = Path("models/user_model")
CURVES: Final = Path("reports/curves")


def run(
    *,
    seed: int,
    model: ModelParams,
    tokens: TokenParams,
    train: TrainParams,
    method: MethodParams,
    name: str,
) -> None:
    """Write `models/<name>` and `reports/curves/<name>.csv`.

    Raises:
        UserError: the model has no layer for LoRA, the method reads texts that nobody wrote,
            or it is of groups and nobody is of one.
    """
    tables = {
        split: read_parquet(PREPARED / f"{split}.parquet") for split in ("train", "validation")
    }
    if method.text:
        require_stated(tables["train"]["user_text"], f"params.yaml: methods.{name}.text")
    settings = {
        "seed": seed,
        "model": model.model_dump(),
        "tokens": tokens.model_dump(),
        "train": train.model_dump(),
        "method": method.model_dump(),
    }
    inputs = [BASE, *(PREPARED / f"{table}.parquet" for table in ("train", "validation", "users"))]
    key = run_key(settings, [*inputs, REFERENCE, PRETRAINED])
    distributed.require_agreement(key)
    checkpoints = ROOT / f"{name}-{key}"

    base = load_base(BASE, model.dtype)
    encoder = encoder_of(base, tokens, text=method.text)
    reference = load_reference(REFERENCE)
    pairs = {
        split: PairTable(table, reference.logps, encoder, reference_text=tokens.reference_text)
        for split, table in tables.items()
    }
    objective = train.model_dump(include={"alpha", "beta", "loss"})

    def fresh(user_model: UserModel) -> PersonalizedLM:
        return adapted(
            base,
            user_model,
            encoder,
            train.lora,
            seed=seed,
            where="train.lora.targets",
            about={"method": name, "objective": objective},
        )

    def fit(
        lm: PersonalizedLM,
        train_pairs: Sequence[Pair],
        eval_pairs: Sequence[Pair],
        part: str = "",
        group: str = "",
    ) -> pd.DataFrame:
        return finetune(
            lm,
            train,
            train_pairs=train_pairs,
            eval_pairs=eval_pairs,
            checkpoints=checkpoints / part,
            seed=seed,
            label=f"train {name}: {group}" if group else f"train {name}",
        )

    with distributed.output(Path("models") / name) as directory:
        if method.kind == "group":
            users = read_parquet(PREPARED / "users.parquet")
            groups = group_user_model(users, base.hidden_size, f"params.yaml: methods.{name}.kind")
            lm, curves = train_groups(
                groups,
                pairs,
                fresh=lambda: fresh(UniformUserModel(groups.users, 0, base.hidden_size)),
                fit=fit,
                directory=directory,
            )
        else:
            start = load_pretrained(PRETRAINED).initial(method.kind, base, text=method.text)
            lm = fresh(start)
            curves = fit(lm, pairs["train"], pairs["validation"])
        lm.save_pretrained(directory)
    if not distributed.is_main():
        return
    write_text(CURVES / f"{name}.csv", curves.to_csv(index=False, lineterminator="\n"))
    discard(checkpoints)
