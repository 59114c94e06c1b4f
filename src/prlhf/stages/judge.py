"""Stage `judge`: whose answer wins, and whether the judge agrees with users' own choices."""

from typing import Any, Final

from prlhf.data.ids import content_hash
from prlhf.data.reference import read_pairs
from prlhf.infra.io import atomic_path, read_parquet, write_json, write_parquet
from prlhf.infra.progress import say
from prlhf.judging import comparisons
from prlhf.judging.fluency import Tables, measure_methods
from prlhf.judging.judges import JudgeContext, build_judges
from prlhf.params import JudgeParams
from prlhf.stages.paths import GENERATED, JUDGED, PREPARED, REFERENCE, SCORES, USERS

PARAMS: Final = ("seed", "compare.all", "judge")


def run(*, seed: int, compared: list[str], judge: JudgeParams) -> None:
    """Write `data/judged/`: judge.json and, if there is a judge, verdicts and choices."""
    judges = build_judges(
        JudgeContext(judge, compared, seed, PREPARED, REFERENCE, GENERATED, SCORES)
    )
    degenerate = {"repetition": judge.degenerate_repetition, "nll_above_base": judge.degenerate_nll}
    about: dict[str, Any] = {
        "judges": [
            {"kind": kind, "name": one.name, "description": one.description}
            for kind, one in judges.items()
        ],
        "degenerate": degenerate,
    }
    if not judges:
        say("judge: none")
        with atomic_path(JUDGED, directory=True) as directory:
            write_json(directory / "judge.json", about)
        return
    generated = {name: read_parquet(GENERATED / f"{name}.parquet") for name in compared}
    tables = {
        name: Tables(texts, read_parquet(SCORES / name / "generations.parquet"))
        for name, texts in generated.items()
    }
    order = comparisons.reading_order(generated)
    measured = measure_methods(tables, order, degenerate, [])
    users = read_parquet(USERS, ["user_id", "group", "seen"])
    unseen = comparisons.judged_unseen_users(users, generated.values(), judge.unseen_users)
    table = comparisons.comparisons(measured, order, unseen)
    judged = comparisons.judge(table, judges)
    test = read_pairs(PREPARED, REFERENCE, "test")
    ranks = test["pair_id"].map(lambda pair: content_hash(str(seed), "judge choices", str(pair)))
    choices = comparisons.judge_choices(test, judges, {"llm": judge.llm.choices}, ranks)
    counts = {
        "all": len(judged.table),
        "broken": judged.broken,
        "equal": judged.equal,
        "asked": int(judged.table["asked"].sum()),
        "without_verdict": int(judged.table["verdict"].isna().sum()),
        "user_not_known": len(table) - len(judged.table),
    }
    details = {kind: found for kind, one in judges.items() if (found := one.report())}
    with atomic_path(JUDGED, directory=True) as directory:
        write_parquet(directory / "verdicts.parquet", judged.table)
        write_parquet(directory / "choices.parquet", choices)
        write_json(directory / "judge.json", about | {"comparisons": counts, "details": details})
    first, *_ = judges.values()
    say(f"judge: {first.name}, {counts['all']} comparisons, {counts['asked']} of them asked about")
    for kind, one in judges.items():
        taken = choices[comparisons.verdict_column(kind, judges)].dropna().astype(float)
        if len(taken):
            right = ((taken + 1) / 2).mean()
            say(f"judge: {one.name} takes {right:.3f} of {len(taken)} choices as users did")
    if spent := details.get("llm"):
        say(
            f"judge: {spent['requests']} requests in all, {spent['tokens']['input']} input and "
            f"{spent['tokens']['output']} output tokens, cost {spent['cost']:.4g}"
        )
