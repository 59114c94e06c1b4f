"""Stage `judge`: whose answer wins, and whether the judge agrees with users' own choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from prlhf.errors import UserError
from prlhf.evaluation.comparisons import column_of, comparisons, judge_choices, strangers
from prlhf.evaluation.comparisons import judge as judge_all
from prlhf.evaluation.judges import Judge, get_oracle
from prlhf.evaluation.measured import Tables, Thresholds, measure, reading_order
from prlhf.io import atomic_path, content_hash, read_json, read_parquet, write_json, write_parquet
from prlhf.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.params import (
        CompareParams,
        JudgeParams,
        LlmJudgeParams,
        RewardJudgeParams,
        TrainedJudgeParams,
    )

PARAMS: Final = ("seed", "compare", "judge")

PREPARED: Final = Path("data/prepared")
REFERENCE: Final = Path("data/reference")
GENERATED: Final = Path("data/generated")
SCORES: Final = Path("data/scores")
OUTPUT: Final = Path("data/judged")


def run(*, seed: int, compare: CompareParams, judge: JudgeParams) -> None:
    """Write `data/judged/`: judge.json and, if there is a judge, verdicts and choices."""
    names = compare.all
    thresholds = Thresholds(judge.degenerate_repetition, judge.degenerate_nll)
    judges = _judges(judge, names, seed)
    about: dict[str, Any] = {
        "judges": [
            {"kind": kind, "name": one.name, "description": one.description}
            for kind, one in judges.items()
        ],
        "degenerate": {
            "repetition": thresholds.repetition,
            "nll_above_base": thresholds.nll_above_base,
        },
    }
    if not judges:
        say("judge: none")
        with atomic_path(OUTPUT, directory=True) as directory:
            write_json(directory / "judge.json", about)
        return
    tables = {
        name: Tables(
            read_parquet(GENERATED / f"{name}.parquet"),
            read_parquet(SCORES / name / "generations.parquet"),
        )
        for name in names
    }
    order = reading_order(tables)
    users = read_parquet(PREPARED / "users.parquet", ["user_id", "group", "seen"])
    measured = measure(tables, list(order), thresholds, [])
    table = comparisons(measured, order, strangers(users, measured.values(), judge.unseen_users))
    judged = judge_all(table, judges)
    test = read_parquet(PREPARED / "test.parquet")
    ranks = test["pair_id"].map(lambda pair: content_hash(str(seed), "judge choices", str(pair)))
    choices = judge_choices(test, judges, {"llm": judge.llm.choices}, ranks)
    about["comparisons"] = {
        "all": len(judged.table),
        "broken": judged.broken,
        "equal": judged.equal,
        "asked": int(judged.table["asked"].sum()),
        "without_verdict": int(judged.table["verdict"].isna().sum()),
        "user_not_known": len(table) - len(judged.table),
    }
    about["details"] = {
        kind: report() for kind, one in judges.items() if (report := getattr(one, "report", None))
    }
    with atomic_path(OUTPUT, directory=True) as directory:
        write_parquet(directory / "verdicts.parquet", judged.table)
        write_parquet(directory / "choices.parquet", choices)
        write_json(directory / "judge.json", about)
    _say_what_came_of_it(judges, about, choices)


def _say_what_came_of_it(
    judges: Mapping[str, Judge], about: Mapping[str, Any], choices: pd.DataFrame
) -> None:
    counts = about["comparisons"]
    say(
        f"judge: {next(iter(judges.values())).name}, {counts['all']} comparisons, "
        f"{counts['asked']} of them asked about"
    )
    for kind, one in judges.items():
        found = choices[column_of(kind, judges)].dropna().astype(float)
        if len(found):
            say(
                f"judge: {one.name} takes {((found + 1) / 2).mean():.3f} of {len(found)} choices "
                "as users did"
            )
    if "llm" in judges:
        spent = about["details"]["llm"]
        tokens = spent["tokens"]
        say(
            f"judge: {spent['requests']} requests in all, {tokens['input']} input and "
            f"{tokens['output']} output tokens, cost {spent['cost']:.4g}"
        )


def _judges(params: JudgeParams, names: list[str], seed: int) -> dict[str, Judge]:
    """The judges asked for, by kind, the one that counts first."""
    task = read_json(PREPARED / "dataset.json").get("task")
    kind = params.kind
    if kind == "auto":
        kind = "none" if get_oracle(task) is None else "oracle"
        if kind == "none" and params.also:
            raise UserError(
                "this data set has no oracle, so that auto means no judge, beside whom no other "
                "can be asked",
                where="params.yaml: judge.also",
                fix="name one of them in judge.kind",
            )
    found: dict[str, Judge] = {}
    for one in dict.fromkeys([kind, *params.also]):
        if one == "oracle":
            oracle = get_oracle(task)
            if oracle is None:
                raise UserError(
                    "this data set has no oracle, because what its users prefer is not known",
                    where="params.yaml: judge.kind" if one == kind else "params.yaml: judge.also",
                    fix="choose reward_model, trained_reward_model, llm or none",
                )
            found[one] = oracle
        elif one == "reward_model":
            found[one] = _reward_judge(params.reward_model, names, seed)
        elif one == "trained_reward_model":
            found[one] = _trained_judge(params.trained_reward_model)
        elif one == "llm":
            found[one] = _llm_judge(params.llm, seed)
    return found


def _reward_judge(params: RewardJudgeParams, names: list[str], seed: int) -> Judge:
    import pandas as pd
    from safetensors.torch import load_file

    from prlhf.evaluation.reward_judge import Features, RewardJudge, cross_fit
    from prlhf.training.pretrain import RewardOptions
    from prlhf.training.reference_files import load_reference, text_key

    reference = load_reference(REFERENCE)
    features = Features(reference.rows, reference.features)
    prompts = set(read_parquet(PREPARED / "test.parquet", ["prompt"])["prompt"])
    for name in names:
        generated = read_parquet(GENERATED / f"{name}.parquet", ["prompt", "text"])
        prompts |= set(generated["prompt"])
        keys = map(text_key, generated["prompt"], generated["text"])
        rows = {key: row for row, key in enumerate(keys)}
        values = load_file(str(SCORES / name / "features.safetensors"))["features"]
        features = Features(rows, values) | features
    splits = ["validation", "test", "unseen", *(["train"] if params.pairs == "all" else [])]
    columns = ["user_id", "prompt", "chosen", "rejected"]
    pairs = pd.concat(
        [read_parquet(PREPARED / f"{split}.parquet", columns) for split in splits],
        ignore_index=True,
    )
    # Nothing is asked of the generic user: alpha is 1, and nothing pulls it anywhere.
    options = RewardOptions(
        alpha=1.0,
        **params.model_dump(include={"rank", "steps", "lr", "l2"}),
        clusters=params.clusters,
        max_clusters=params.clusters,
        generic_pull=0.0,
    )
    scorer = cross_fit(
        pairs, sorted(prompts), features, folds=params.folds, options=options, seed=seed
    )
    about = {
        "folds": len(scorer.fitted),
        "pairs": len(pairs),
        "splits": splits,
        "users": pairs["user_id"].nunique(),
    }
    return RewardJudge(scorer, params.tie, about)


def _trained_judge(params: TrainedJudgeParams) -> Judge:
    from prlhf.evaluation.trained_judge import trained_judge

    return trained_judge(SCORES / f"reward_{params.method}", params.tie)


def _llm_judge(params: LlmJudgeParams, seed: int) -> Judge:
    import pandas as pd

    from prlhf.evaluation.llm_client import Endpoint
    from prlhf.evaluation.llm_judge import LlmJudge, known_users

    unseen = read_parquet(PREPARED / "unseen.parquet")
    pairs = pd.concat(
        [read_parquet(PREPARED / "train.parquet"), unseen[unseen["prompt_split"] == "train"]],
        ignore_index=True,
    )
    users = known_users(
        read_parquet(PREPARED / "users.parquet"),
        pairs,
        context=params.context,
        criteria=params.criteria,
        examples=params.examples,
        limit=params.example_chars,
        seed=seed,
    )
    # The fields of an endpoint are parameters of the same names.
    names = {field.name for field in dataclasses.fields(Endpoint)}
    endpoint = Endpoint(**params.model_dump(include=names))
    return LlmJudge.at(endpoint, users)
