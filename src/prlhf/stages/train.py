"""Stage `train`: one method's adapter and user model, by P-DPO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.contract import require_stated
from prlhf.io import atomic_path, read_parquet, write_text
from prlhf.models.base import Encoder, load_base
from prlhf.models.lora import add_lora
from prlhf.models.personalized import PersonalizedLM
from prlhf.training.checkpoints import ROOT, run_key
from prlhf.training.finetune import discard, finetune
from prlhf.training.pairs import encode_pairs
from prlhf.training.pretrained import load_pretrained
from prlhf.training.reference import load_reference

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
        UserError: the model has no layer for LoRA, or the method reads texts that nobody wrote.
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
    inputs = [BASE, PREPARED / "train.parquet", PREPARED / "validation.parquet"]
    key = run_key(settings, [*inputs, REFERENCE, PRETRAINED])
    checkpoints = ROOT / f"{name}-{key}"

    base = load_base(BASE, model.dtype)
    user_model = load_pretrained(PRETRAINED).initial(method.kind, base, text=method.text)
    encoder = Encoder(
        base.tokenizer,
        tokens.max_prompt,
        tokens.max_response,
        tokens.max_user_text if method.text else None,
    )
    lora = train.lora
    adapted = add_lora(
        base.model,
        rank=lora.r,
        alpha=lora.alpha,
        dropout=lora.dropout,
        targets=lora.targets,
        base_name=str(base.source.get("name", "base")),
        seed=seed,
    )
    about = {"method": name, "objective": train.model_dump(include={"alpha", "beta", "loss"})}
    lm = PersonalizedLM(base, adapted, user_model, encoder, about)
    reference = load_reference(REFERENCE)
    pairs = {
        split: encode_pairs(table, reference.logps, encoder, reference_text=tokens.reference_text)
        for split, table in tables.items()
    }
    curves = finetune(
        lm,
        train,
        train_pairs=pairs["train"],
        eval_pairs=pairs["validation"],
        checkpoints=checkpoints,
        seed=seed,
        label=f"train {name}",
    )
    with atomic_path(Path("models") / name, directory=True) as directory:
        lm.save_pretrained(directory)
    write_text(CURVES / f"{name}.csv", curves.to_csv(index=False, lineterminator="\n"))
    discard(checkpoints)
