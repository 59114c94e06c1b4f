"""Stage `train`: one method's adapter and user model, by P-DPO."""

from functools import partial
from pathlib import Path
from typing import Final, cast

from peft import PeftModel

from prlhf.data import as_trained, require_user_texts
from prlhf.data.reference import LOGPS, SET_ASIDE, load_reference, read_pairs
from prlhf.infra import distributed
from prlhf.infra.io import (
    checkpoint_directory,
    discard,
    read_parquet,
    run_key,
    write_json,
)
from prlhf.infra.kept import KeptWork
from prlhf.infra.tables import write_csv
from prlhf.models.base import Encoder, load_base
from prlhf.models.continued import Predecessor, find_predecessor
from prlhf.models.model_card import describe_data, validation_figures, write_model_card
from prlhf.models.personalized import PersonalizedLM
from prlhf.models.pretrained import load_pretrained
from prlhf.models.user_model import GroupUserModel, UniformUserModel, UserModel
from prlhf.params import MethodParams, ModelParams, OptimizerParams, TokenParams, TrainParams
from prlhf.stages.paths import (
    BASE,
    CURVES,
    PREPARED,
    PRETRAINED,
    REFERENCE,
    USERS,
    method_directory,
    split_table,
)
from prlhf.training.dataset import PreferenceDataset
from prlhf.training.finetune import (
    Pairs,
    Run,
    account,
    build_model,
    fit,
    known_groups,
    mean_curves,
    train_groups,
)
from prlhf.training.plan import watched_pairs
from prlhf.training.trainer import PDPOTrainer
from prlhf.training.trust import may_differ, settle_trust

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
    """Write `models/<name>`, `reports/curves/<name>.csv`, and the runs' account beside that.

    Raises:
        UserError: LoRA finds no layer of the given names; the method reads users' texts but there
            are none; it has an adapter per group but there are no groups; or `start_from` is no
            model that it can go on from.
    """
    tables = {split: read_pairs(PREPARED, REFERENCE, split) for split in SPLITS}
    users = read_parquet(USERS)
    tables["train"] = as_trained(tables["train"], users)
    if method.text:
        require_user_texts(tables["train"]["user_text"], f"params.yaml: methods.{name}.text")
    settings = {"model": model, "tokens": tokens, "train": train, "optimizer": optimizer}
    kept = [REFERENCE / LOGPS, REFERENCE / SET_ASIDE]
    inputs = [BASE, *map(split_table, SPLITS), USERS, *kept, PRETRAINED]
    past_directory = None
    if Path(train.start_from) != BASE:
        past_directory = find_predecessor(Path(train.start_from), name)
        inputs.append(past_directory)
    key = run_key({"seed": seed, "method": method, **settings}, inputs)
    distributed.require_agreement(key)
    checkpoints = checkpoint_directory(name, key)

    base = load_base(BASE, model.dtype)
    encoder = Encoder.from_params(base.chat, tokens, text=method.text)
    logps = load_reference(REFERENCE).logps
    pairs = {
        split: PreferenceDataset(table, logps, encoder, reference_text=tokens.reference_text)
        for split, table in tables.items()
    }
    groups = known_groups(users) if method.kind == "group" else []
    start = load_pretrained(PRETRAINED).initial(method.kind, base, text=method.text, groups=groups)
    about = {
        "method": name,
        "seed": seed,
        "objective": train.model_dump(exclude={"start_from"}),
        "optimizer": optimizer.model_dump(),
        "data": describe_data(PREPARED, SPLITS, tables["train"]),
    }
    past = None
    if past_directory is not None:
        past = Predecessor.load(past_directory, base)
        start = past.user_model_for(start, method.kind)
        about["started_from"] = past.lineage

    def fresh(user_model: UserModel, group: str | None = None) -> PersonalizedLM:
        lm = build_model(base, user_model, encoder, optimizer.lora, seed=seed, about=about)
        if past is not None:
            past.load_adapter(cast(PeftModel, lm.lm), group)
        return lm

    def trained(lm: PersonalizedLM, pairs: Pairs, part: str = "", group: str = "") -> Run:
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
            lm, runs = train_groups(
                start,
                pairs,
                fresh=partial(fresh, UniformUserModel(start.users, 0, base.hidden_size)),
                train=trained,
                directory=directory,
            )
        else:
            lm = fresh(start)
            runs = [trained(lm, pairs)]
        record = account(runs)
        held_out = pairs["validation"]
        if train.trust_pairs is not None and len(held_out) and may_differ(lm, train.alpha):
            watched = watched_pairs(held_out, train.trust_pairs, seed)
            record["trust"] = settle_trust(
                lm,
                watched,
                train,
                batch=runs[0].plan.micro_batch_size,
                label=f"train {name}",
                work=KeptWork(checkpoints / "trust"),
            )
        lm.about["personal"] = lm.user_model.tells_apart
        lm.about["training"] = record
        lm.about["validation"] = validation_figures([(run.curves, run.kept_step) for run in runs])
        lm.save_pretrained(directory)
        if distributed.is_main():
            write_model_card(directory)
    if distributed.is_main():
        curves = mean_curves([run.curves for run in runs])
        write_csv(CURVES / f"{name}.csv", curves)
        write_json(CURVES / f"{name}.json", record)
        discard(checkpoints)
