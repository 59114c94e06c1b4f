"""The judge stage on synthetic runs: its files, and what evaluate makes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from chat_server import ChatServer, Exchange, longer, verdict
from prlhf.cli import execute
from prlhf.params import CompareParams, EvaluateParams, JudgeParams, Params, load
from prlhf.report.summary import render
from prlhf.stages import evaluate, judge, report
from synthetic_run import write_features, write_run

ROOT = Path(__file__).resolve().parents[2]
COMPARE = CompareParams(trained=["dpo", "pdpo"], all=["base", "dpo", "pdpo"])
COLUMNS = [
    "method",
    "other",
    "user_id",
    "group",
    "prompt_id",
    "seen",
    "finished",
    "asked",
    "verdict",
]


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def params() -> Params:
    return load(ROOT / "params.yaml")


def judge_params(llm=None, feature_reward=None, **changes) -> JudgeParams:
    settings = params().judge.model_dump()
    settings["llm"] |= llm or {}
    settings["feature_reward"] |= feature_reward or {}
    return JudgeParams(**settings | changes)


def evaluate_params() -> EvaluateParams:
    return params().evaluate


def run(settings: JudgeParams) -> None:
    judge.run(seed=7, compared=COMPARE.all, judge=settings)


def metrics() -> dict:
    evaluate.run(seed=7, compare=COMPARE, reward_models=[], evaluate=evaluate_params())
    return json.loads(Path("reports/metrics.json").read_text(encoding="utf-8"))


def about() -> dict:
    return json.loads(Path("data/judged/judge.json").read_text(encoding="utf-8"))


def verdicts() -> pd.DataFrame:
    return pd.read_parquet("data/judged/verdicts.parquet")


def test_the_oracle_is_the_judge_of_the_built_in_data(work, capsys):
    write_run(work)
    run(judge_params())
    found = verdicts()
    assert list(found.columns) == COLUMNS
    # 30 prompts: 10 seen users and 4 held-out ones, against two methods.
    assert len(found) == 30 * (10 + 4) * 2
    assert set(found["verdict"]) == {-1, 0, 1}
    counts = about()["comparisons"]
    assert counts["all"] == len(found) == counts["asked"] + counts["broken"] + counts["equal"]
    assert (counts["without_verdict"], counts["user_not_known"]) == (0, 0)
    assert [one["kind"] for one in about()["judges"]] == ["oracle"]
    assert len(pd.read_parquet("data/judged/choices.parquet")) == 120
    assert "takes 1.000 of 120 choices as users did" in capsys.readouterr().err
    assert "judges" not in metrics()


def test_methods_of_other_names_give_a_full_report(work):
    write_run(work, methods=("plain", "mine"), personalised=("mine",))
    names = ["base", "plain", "mine"]
    judge.run(seed=7, compared=names, judge=judge_params())
    evaluate.run(
        seed=7,
        compare=CompareParams(trained=names[1:], all=names),
        reward_models=[],
        evaluate=evaluate_params().model_copy(update={"baseline": "plain", "subject": "mine"}),
    )
    report.run()
    found, about, headline = (
        json.loads(Path(f"reports/{name}.json").read_text(encoding="utf-8"))
        for name in ("metrics", "evaluation", "headline")
    )
    assert set(found["accuracy_gain"]) == {"mine_vs_plain"}
    assert set(found["generic_gain"]) == {"mine_vs_plain"}
    assert set(found["win_rate"]) == {"mine_vs_base", "mine_vs_plain"}
    assert headline["mine"]["win_rate"] == found["win_rate"]["mine_vs_plain"]["win_rate"] > 0.5
    assert (about["baseline"], about["subject"]) == ("plain", "mine")
    assert [method["name"] for method in about["methods"]] == names
    lines = render(found, about).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["Base", "plain", "mine"]
    assert any(line.startswith("mine over plain: +") for line in lines)
    assert any(line.startswith("mine against plain, wins: ") for line in lines)
    page = Path("reports/report.html").read_text(encoding="utf-8")
    assert "Yes" in page
    assert "against plain" in page


def test_no_judge(work):
    write_run(work, task=None)
    for kind in ("auto", "none"):
        run(judge_params(kind=kind))
        assert {path.name for path in Path("data/judged").iterdir()} == {"judge.json"}
        assert about()["judges"] == []
        found = metrics()
        assert "win_rate" not in found
        assert "judge_agreement" not in found
        assert found["fluency"]["pdpo"]["degenerate"] > 0


def test_the_thresholds_of_the_judge_are_those_of_the_fluency(work):
    write_run(work)
    run(judge_params(degenerate_repetition=1.0))
    assert metrics()["fluency"]["pdpo"]["degenerate"] == 0
    run(judge_params(degenerate_repetition=0.3))
    assert metrics()["fluency"]["pdpo"]["degenerate"] > 0


def test_fewer_held_out_users(work):
    write_run(work)
    run(judge_params(unseen_users=2))
    unseen = verdicts().query("not seen")
    assert unseen["user_id"].nunique() == 2
    assert metrics()["win_rate"]["pdpo_vs_dpo"]["unseen"]["comparisons"] == 60


def test_a_reward_model_beside_the_oracle(work):
    write_run(work)
    write_features(work)
    run(judge_params(kind="feature_reward", also=["oracle"]))
    found = verdicts()
    assert list(found.columns) == [*COLUMNS, "probability", "verdict_oracle"]
    assert about()["details"]["feature_reward"]["splits"] == ["validation", "test", "unseen"]
    figures = metrics()
    assert figures["judge_agreement"]["all"] > 0.95
    assert figures["judges"]["oracle"]["choices"] == 1.0
    assert figures["judges"]["feature_reward"]["choices"] == figures["judge_agreement"]["all"]
    pair = figures["judges"]["feature_reward_vs_oracle"]
    assert 0.7 < pair["kappa"] < pair["agreement"] < 1
    assert pair["comparisons"] == found["asked"].sum()
    assert figures["interval"]["judges"]["feature_reward_vs_oracle"]["kappa"]["low"] < pair["kappa"]
    first = Path("data/judged/verdicts.parquet").read_bytes()
    run(judge_params(kind="feature_reward", also=["oracle"]))
    assert Path("data/judged/verdicts.parquet").read_bytes() == first


def test_a_reward_model_speaks_for_users_of_no_group(work):
    write_run(work, task=None, grouped=False)
    write_features(work)
    run(judge_params(kind="feature_reward", feature_reward={"pairs": "all"}))
    assert "train" in about()["details"]["feature_reward"]["splits"]
    found = metrics()["win_rate"]["pdpo_vs_dpo"]
    assert found["comparisons"] == 300
    assert "groups" not in found
    # The baseline serves those who like it long.
    short = verdicts().query(
        "other == 'dpo' and seen and asked and user_id.str.startswith('short')"
    )
    assert short["verdict"].mean() > 0.9


def llm(server: ChatServer, **changes) -> JudgeParams:
    """A judge at the server, sparing with requests."""
    settings = {"base_url": server.url, "model": "tester", "api_key_env": None, "choices": 10}
    settings |= {"price_input": 1.0, "price_output": 4.0, "retries": 1}
    return judge_params(kind="llm", llm=settings | changes)


def by_taste(exchange: Exchange) -> None:
    """A judge who heeds what is said of the user, and takes what is shown first if nothing is."""
    gap = len(exchange.shown("answer_a")) - len(exchange.shown("answer_b"))
    sign = -1 if "the shorter one is better" in exchange.question else 1
    exchange.say(verdict("A" if sign * gap >= 0 else "B", "as the user wants"))


def test_a_language_model_judges_by_the_criteria_of_groups(work, server, capsys):
    write_run(work, prompts=6, pairs_per_user=4)
    server.behave = by_taste
    run(llm(server))
    found = verdicts()
    assert list(found.columns) == [*COLUMNS, "forward", "reversed", "reason"]
    asked = found[found["asked"]]
    assert (asked["reason"] == "as the user wants").all()
    assert found.loc[~found["asked"], ["forward", "reversed", "reason"]].isna().all(axis=None)
    details = about()["details"]["llm"]
    assert (details["model"], details["requests"]) == ("tester", len(server.requests))
    assert details["tokens"] == {
        "input": 100 * len(server.requests),
        "output": 10 * len(server.requests),
    }
    assert details["cost"] == pytest.approx(len(server.requests) * (100 + 40) / 1e6)
    # Held-out users of one group with the same answers ask the same.
    assert len(server.requests) < 2 * (len(asked) + 10)
    figures = metrics()
    assert figures["judge_agreement"]["all"] == 1.0
    same = asked["forward"] == asked["reversed"]
    assert figures["judges"]["llm"]["same_in_both_orders"] == pytest.approx(same.mean(), abs=1e-6)
    assert ((asked["verdict"] == 0) == ~same).all()
    assert "requests in all" in capsys.readouterr().err
    paid = len(server.requests)
    first = {path: path.read_bytes() for path in Path("data/judged").iterdir()}
    shutil.rmtree("data/judged")
    run(llm(server, concurrency=1))
    assert len(server.requests) == paid
    assert {path: path.read_bytes() for path in Path("data/judged").iterdir()} == first


def test_a_language_model_knows_users_without_groups_by_their_earlier_choices(work, server):
    write_run(work, prompts=3, pairs_per_user=4, task=None, grouped=False)
    run(llm(server, examples=2, choices=0))
    train = pd.read_parquet("data/prepared/train.parquet")
    chosen = set(train["prompt"].map(lambda prompt: json.loads(prompt)[0]["content"]))
    for body in server.requests:
        shown = body["messages"][1]["content"]
        assert 1 <= shown.count("<choice>") <= 2
        assert any(prompt in shown for prompt in chosen)
    assert metrics()["win_rate"]["pdpo_vs_dpo"]["comparisons"] > 0


def test_a_language_model_beside_the_oracle(work, server):
    write_run(work, prompts=4, pairs_per_user=4)
    server.behave = longer
    settings = llm(server).model_copy(update={"kind": "oracle", "also": ["llm"]})
    run(settings)
    figures = metrics()
    assert figures["judges"]["oracle_vs_llm"]["agreement"] < 1
    assert figures["judges"]["oracle"]["choices"] == 1.0
    assert figures["judges"]["llm"]["choices"] < 1
    run(judge_params())
    alone = metrics()
    assert alone["win_rate"] == figures["win_rate"]
    assert alone["judge_agreement"] == figures["judge_agreement"]


def test_answers_of_the_judge_that_cannot_be_read_are_counted_apart(work, server):
    write_run(work, prompts=3, pairs_per_user=4)

    def behave(exchange: Exchange) -> None:
        if len(exchange.shown("answer_a")) % 3 == 0:
            exchange.say("I would rather not say.")
        else:
            by_taste(exchange)

    server.behave = behave
    run(llm(server, reask=0))
    found = verdicts()
    missing = found["verdict"].isna()
    assert 0 < missing.sum() == about()["comparisons"]["without_verdict"] < len(found)
    figures = metrics()
    seen = found[(found["other"] == "dpo") & found["seen"]]
    assert figures["win_rate"]["pdpo_vs_dpo"]["comparisons"] == seen["verdict"].notna().sum()
    notes = json.loads(Path("reports/evaluation.json").read_text(encoding="utf-8"))["notes"]
    assert any("the judge gave no verdict on" in note for note in notes)


# Mistakes, through the command


@pytest.fixture
def command(work, server, monkeypatch, capsys):
    """`prlhf judge` with changes to judge.llm: the error lines; what was judged earlier stays."""
    write_run(work, prompts=2, pairs_per_user=4)
    run(judge_params())
    before = Path("data/judged/verdicts.parquet").read_bytes()
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def check(**changes) -> list[str]:
        text = (ROOT / "params.yaml").read_text()
        for key, value in {
            "base_url": server.url,
            "model": "tester",
            "retries": 0,
            **changes,
        }.items():
            line = next(x for x in text.splitlines() if x.startswith(f"    {key}: "))
            text = text.replace(line, f"    {key}: {value}")
        Path("params.yaml").write_text(
            text.replace("  kind: auto", "  kind: llm"), encoding="utf-8"
        )
        capsys.readouterr()
        assert execute(["judge"]) == 2
        assert Path("data/judged/verdicts.parquet").read_bytes() == before
        return [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]

    return check


def test_a_missing_key_is_one_line(command, server):
    assert command() == [
        "error: params.yaml: judge.llm.api_key_env: the environment variable OPENAI_API_KEY is not "
        "set (export it with the API key, or name none (null) for a server that wants none)"
    ]
    assert server.requests == []


def test_nobody_at_the_address_is_one_line(command):
    [line] = command(base_url="http://127.0.0.1:9/v1", api_key_env="null")
    assert line.startswith(
        "error: params.yaml: judge.llm.base_url: http://127.0.0.1:9/v1 cannot be reached: "
    )


def test_an_unknown_model_is_one_line(command, server):
    server.behave = lambda exchange: exchange.fail(404, "The model `tester` does not exist")
    assert command(api_key_env="null") == [
        f"error: params.yaml: judge.llm.model: {server.url} refuses the request for tester (404): "
        "The model `tester` does not exist (check judge.llm.model and judge.llm.base_url)"
    ]


def test_a_limit_below_what_is_needed_is_one_line(command, server):
    [line] = command(api_key_env="null", max_requests="3")
    assert line.startswith("error: params.yaml: judge.llm.max_requests: ")
    assert server.requests == []


def test_llm_without_a_model_is_a_fault_of_params(command):
    [line] = command(model="null")
    assert line.endswith("judge.llm.model: must name a model when the judge is llm")


@pytest.mark.parametrize(
    ("changes", "task", "words"),
    [
        ({"kind": "oracle"}, None, "judge.kind: this data set has no oracle"),
        ({"kind": "auto", "also": ["feature_reward"]}, None, "auto means no judge"),
    ],
)
def test_judges_that_the_data_set_does_not_have(work, changes, task, words):
    from prlhf.infra.errors import UserError

    write_run(work, task=task)
    with pytest.raises(UserError, match=words):
        run(judge_params(**changes))
