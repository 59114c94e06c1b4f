"""The evaluate and report stages on synthetic runs: what they write, and what the report says."""

from __future__ import annotations

import copy
import csv
import hashlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from markupsafe import escape

from prlhf.data.reference import SET_ASIDE_COLUMNS
from prlhf.infra.errors import UserError
from prlhf.infra.io import read_parquet, write_json, write_parquet
from prlhf.infra.tables import read_csv
from prlhf.metrics import tables
from prlhf.metrics.reading import percent, percent_range, points
from prlhf.params import CompareParams, EvaluateParams, load
from prlhf.report import headline, summary
from prlhf.report.svg import Drawing, Scale, abridged, ticks
from prlhf.stages import evaluate, judge, report
from synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = EvaluateParams(
    baseline="dpo",
    subject="pdpo",
    margin=0.02,
    confidence=0.95,
    sample_prompts=2,
    sample_users=4,
)
JUDGE = load(ROOT / "params.yaml").judge.model_copy(
    update={"kind": "auto", "also": [], "degenerate_repetition": 0.3, "degenerate_nll": 3.0}
)
HOSTILE = "<script>alert('x')</script> & \"quoted\" </style><img src=x onerror=alert(1)>"


def comparing(*methods: str) -> CompareParams:
    return CompareParams(trained=list(methods), all=["base", *methods])


def make(root: Path, methods=("dpo", "pdpo"), **changes) -> str:
    """Write a synthetic run under `root`, the working directory; evaluate it and report on it."""
    write_run(root, methods=methods, **changes)
    shutil.copy(ROOT / "params.yaml", root)
    judge.run(seed=7, compared=comparing(*methods).all, judge=JUDGE)
    evaluate.run(seed=7, compare=comparing(*methods), reward_models=[], evaluate=SETTINGS)
    report.run()
    return (root / "reports/report.html").read_text(encoding="utf-8")


@pytest.fixture
def work(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Page(HTMLParser):
    """Checks that tags are balanced, and collects them and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def check_page(html: str) -> Page:
    """A page that is well-formed, loads nothing, runs nothing and shows no broken figures."""
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in html
    assert "url(" not in html
    # The second is a parameter's value, shown as text.
    named = {"http://www.w3.org/2000/svg", JUDGE.llm.base_url}
    assert set(re.findall(r"https?://[^\s\"<]+", html)) <= named
    for drawing in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        for element in root.iter():
            numbers = {
                "x",
                "y",
                "x1",
                "x2",
                "y1",
                "y2",
                "cx",
                "cy",
                "width",
                "height",
                "d",
                "points",
            }
            for name in numbers & element.attrib.keys():
                assert not re.search("nan|inf", element.attrib[name])
    assert not re.search(r"\bnan\b|\bNaN\b|\bNone\b|\bUndefined\b", page.words)
    return page


def test_evaluate_writes_what_it_says_and_the_report_reads_it(work):
    page = check_page(make(work))
    metrics = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))
    assert metrics["accuracy"]["dpo"]["groups"]["longer"] > 0.9
    assert metrics["accuracy"]["dpo"]["groups"]["shorter"] < 0.1
    assert metrics["accuracy"]["pdpo"]["groups"]["shorter"] > 0.8
    assert metrics["win_rate"]["pdpo_vs_dpo"]["groups"]["shorter"]["win_rate"] > 0.9
    assert metrics["length"]["pdpo"]["ratio"] < 0.4
    assert metrics["judge_agreement"]["all"] == 1.0
    for name in (
        "per_user",
        "per_user_wins",
        "plots/per_user_accuracy",
        "plots/lengths",
        "plots/embeddings",
        "plots/curves",
    ):
        assert len(pd.read_csv(work / f"reports/{name}.csv")) > 5
    for phrase in (
        "The question:",
        "How well each user is understood",
        "What users get to read",
        "Is it still good language?",
        "What the model learned about its users",
        "How training went",
        "The data",
        "How this was measured",
        "P-DPO predicts",
        "Where it does not know the user, it is not clear what personalising does to accuracy",
        "Accuracy for users that are not known, less that of DPO, points",
        "generic user",
        "empty chosen",
        "judge.degenerate_nll",
        "Pretraining by reward found 2 kinds of user",
        "There is something to gain on these data",
        "120 choices of 10 users",
        "P-DPO: 120 steps, weights of step 100 kept; until then 480 of 2,400 training pairs were "
        "seen, and 9 of 10 users.",
        "Users shuffled 0.620 0.630 \N{MINUS SIGN}0.010 \N{PLUS-MINUS SIGN}0.020",
    ):
        assert phrase in page.words


def test_methods_may_have_any_names(work):
    """A run with other names has every comparison that one with dpo and pdpo has."""

    def found(one: str, other: str) -> tuple[dict, Page, list[str]]:
        metrics = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))
        evaluation = json.loads((work / "reports/evaluation.json").read_text(encoding="utf-8"))
        gains = {
            key: metrics[key][f"{one}_vs_{other}"] for key in ("accuracy_gain", "generic_gain")
        }
        html = (work / "reports/report.html").read_text(encoding="utf-8")
        return gains, check_page(html), summary.render(metrics, evaluation).splitlines()

    make(work)
    gains, page, lines = found("pdpo", "dpo")
    shutil.rmtree(work / "data")
    shutil.rmtree(work / "reports")
    write_run(work, methods=("plain", "mine"), personalised=("mine",))
    compare = comparing("plain", "mine")
    settings = SETTINGS.model_copy(update={"baseline": "plain", "subject": "mine"})
    judge.run(seed=7, compared=compare.all, judge=JUDGE)
    evaluate.run(seed=7, compare=compare, reward_models=[], evaluate=settings)
    report.run()
    renamed_gains, renamed_page, renamed_lines = found("mine", "plain")
    assert renamed_gains == gains
    assert len(renamed_lines) == len(lines)
    for tag in ("h2", "table", "figure", "svg", "dt"):
        counts = [[name for name, _ in each.tags].count(tag) for each in (page, renamed_page)]
        assert counts[0] == counts[1], tag
    titles = {attributes.get("aria-label") for _, attributes in renamed_page.tags}
    assert "mine against plain: wins, ties and losses" in titles
    words = renamed_page.words.partition("How this was measured")[0]
    for phrase in (
        "mine predicts",
        "plain, one model for everyone",
        "comparisons with plain won",
        "Accuracy for users that are not known, less that of plain, points",
        "Where it does not know the user, it is not clear what personalising does to accuracy",
    ):
        assert phrase in words
    assert "DPO" not in words + "".join(renamed_lines)


def test_same_inputs_same_bytes(work):
    def digests():
        return {
            str(path.relative_to(work)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((work / "reports").rglob("*"))
            if path.is_file()
        }

    make(work)
    first = digests()
    make(work)
    assert digests() == first
    assert {"reports/metrics.json", "reports/report.html"} <= first.keys()


def test_words_of_others_are_escaped(work):
    html = make(work, answer=HOSTILE, sizes={HOSTILE: 3, "shorter": 2}, unseen={})
    page = check_page(html)
    assert "<script" not in html
    assert "onerror=alert(1)>" not in html
    assert "alert('x')" in page.words


def test_hostile_prompt_and_user_text_reach_the_page_escaped(work):
    make(work)
    path = work / "reports/evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    sample = evaluation["samples"]["prompts"][0]
    sample["messages"] = [{"role": HOSTILE, "content": HOSTILE}, {"role": "user", "content": "?"}]
    sample["answers"][-1].update(user_id=HOSTILE, group=HOSTILE)
    evaluation["notes"] = [HOSTILE]
    path.write_text(json.dumps(evaluation))
    report.run()
    html = (work / "reports/report.html").read_text(encoding="utf-8")
    check_page(html)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 5


@pytest.mark.parametrize(
    "changes",
    [
        {"sizes": {"a": 2}, "unseen": {}, "grouped": False, "task": None, "prompts": 2},
        {"sizes": {"a": 1}, "unseen": {}, "prompts": 1, "pairs_per_user": 1, "task": None},
        {"methods": ("pdpo",)},
        {"methods": ("dpo",), "personalised": ()},
        {"methods": ("dpo", "pdpo", "clusters"), "personalised": ("pdpo", "clusters")},
        {"sizes": {f"group {i:02}": 2 for i in range(14)}, "unseen": {}, "task": None},
        {
            "sizes": dict.fromkeys(("simple", "expert", "concise", "thorough", "warm", "curt"), 1),
            "unseen": {},
            "task": "style",
        },
    ],
    ids=[
        "two-users-no-groups",
        "one-user",
        "no-baseline",
        "no-personalised",
        "three",
        "many",
        "style",
    ],
)
def test_report_of_other_runs(work, changes):
    page = check_page(make(work, **changes))
    if changes.get("task", "length") is None:
        assert "win rates are left out" in page.words


def test_two_thousand_users_give_a_page_of_bounded_size(work):
    html = make(work, sizes={"longer": 1400, "shorter": 600}, prompts=4, pairs_per_user=3)
    check_page(html)
    assert len(html) < 1_000_000


def test_report_without_optional_files(work):
    make(work)
    for name in ("validation.json", "pretrain.json"):
        (work / "reports" / name).unlink()
    shutil.rmtree(work / "reports/curves")
    (work / "params.yaml").unlink()
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "The data" not in page.words
    assert "How training went" not in page.words


def test_what_the_token_limits_did_is_said_where_the_results_are(work):
    make(work)
    warnings = {
        "max_response": "3 of 9 chosen responses lose their end",
        "max_user_text": "1 of 2 users' texts lose their end",
        "set_aside": "4 of 20 pairs are set aside <b>",
    }
    write_json(work / "reports/reference.json", {"warnings": warnings})
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "Read with care" in page.words
    assert "3 of 9 chosen responses lose their end." in page.words
    assert "4 of 20 pairs are set aside <b>." in page.words
    # No method here reads what users say.
    assert "1 of 2 users' texts" not in page.words
    params = work / "params.yaml"
    text = params.read_text(encoding="utf-8")
    told = text.replace("text: false                 # users are known", "text: true # users are")
    assert told != text
    params.write_text(told, encoding="utf-8")
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "1 of 2 users' texts lose their end." in page.words


def test_pairs_that_are_set_aside_are_in_no_count(work):
    make(work)
    test, train = (read_parquet(f"data/prepared/{name}.parquet") for name in ("test", "train"))
    whole = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))["counts"]
    gone = {"test": test[::2], "train": train[train["user_id"] == test["user_id"][0]]}
    aside = pd.concat([pairs.assign(split=split) for split, pairs in gone.items()])
    aside = aside.assign(row=1, reason="equal_after_cut", max_response=9)
    write_parquet("data/reference/set_aside.parquet", aside[list(SET_ASIDE_COLUMNS)])
    judge.run(seed=7, compared=comparing("dpo", "pdpo").all, judge=JUDGE)
    evaluate.run(seed=7, compare=comparing("dpo", "pdpo"), reward_models=[], evaluate=SETTINGS)
    counts = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))["counts"]
    assert whole["pairs"]["seen"] == len(test)
    assert counts["pairs"]["seen"] == len(test) - len(test[::2])
    choices = read_parquet("data/judged/choices.parquet")
    assert set(choices["pair_id"]) == set(test["pair_id"]) - set(test[::2]["pair_id"])


def test_what_was_found_to_gain_is_shown_with_its_control(work):
    make(work)
    path = work / "reports/pretrain.json"
    pretrain = json.loads(path.read_text(encoding="utf-8"))
    pretrain["gain"]["personal"] = False
    path.write_text(json.dumps(pretrain), encoding="utf-8")
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "Nothing to gain from knowing these users, as far as their choices tell." in page.words
    assert "fall back to the generic user, and serve everybody alike" in page.words
    # Other kinds of method do not start from that user model.
    params = work / "params.yaml"
    text = params.read_text(encoding="utf-8")
    assert text.count("    kind: cluster") >= 1
    params.write_text(text.replace("    kind: cluster", "    kind: group"), encoding="utf-8")
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "Nothing to gain from knowing" not in page.words
    # There may be too few choices to tell.
    pretrain["gain"]["log_loss"] = dict.fromkeys(("personal", "shared", "difference", "se"))
    path.write_text(json.dumps(pretrain), encoding="utf-8")
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "There are too few choices to tell whether users differ." in page.words
    assert "Users shuffled" not in page.words
    # And other pretraining looks for nothing to gain.
    del pretrain["gain"]
    path.write_text(json.dumps(pretrain), encoding="utf-8")
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "to gain on these data" not in page.words


def test_the_curves_of_all_methods_are_one_table(work):
    make(work)
    table = pd.read_csv(work / "reports/plots/curves.csv")
    assert list(table) == ["method", "split", "step", "loss", "accuracy"]
    assert table.groupby(["method", "split"], sort=True).size().to_dict() == {
        ("dpo", "train"): 120,
        ("dpo", "validation"): 6,
        ("pdpo", "train"): 120,
        ("pdpo", "validation"): 6,
    }
    own = pd.read_csv(work / "reports/curves/pdpo.csv")
    assert (own["accuracy_user"] != own["accuracy_generic"]).any()
    assert table[table["method"] == "pdpo"]["accuracy"].tolist() == own["accuracy_user"].tolist()


def test_a_method_without_users_has_the_curve_of_the_generic_user(work):
    plain = pd.DataFrame(
        {"step": [1], "split": ["train"], "loss": [0.7], "accuracy_generic": [0.5]}
    )
    assert tables.curves({"dpo": plain}).to_dict("records") == [
        {"method": "dpo", "split": "train", "step": 1, "loss": 0.7, "accuracy": 0.5}
    ]
    assert tables.curves({}).empty


def test_only_the_methods_compared_are_evaluated(work):
    write_run(work, methods=("dpo", "pdpo", "earlier"))
    judge.run(seed=7, compared=comparing("dpo", "pdpo").all, judge=JUDGE)
    evaluate.run(seed=7, compare=comparing("dpo", "pdpo"), reward_models=[], evaluate=SETTINGS)
    assert "earlier" not in (work / "reports/metrics.json").read_text(encoding="utf-8")
    for table in (work / "reports").glob("plots/*.csv"):
        assert "earlier" not in table.read_text(encoding="utf-8"), table


def test_missing_files_are_named(work):
    write_run(work)
    with pytest.raises(UserError, match=r"data/judged/judge\.json: no such file"):
        evaluate.run(seed=0, compare=comparing("dpo"), reward_models=[], evaluate=SETTINGS)
    with pytest.raises(UserError, match=r"data/generated/other\.parquet: no such file"):
        judge.run(seed=0, compared=comparing("other").all, judge=JUDGE)
    with pytest.raises(UserError, match=r"reports/metrics\.json: no such file"):
        report.run()


def test_oracle_required_but_not_known(work):
    write_run(work, task=None)
    settings = JUDGE.model_copy(update={"kind": "oracle"})
    with pytest.raises(UserError, match=r"judge\.kind: this data set has no oracle"):
        judge.run(seed=0, compared=comparing("dpo", "pdpo").all, judge=settings)


def test_names_that_look_like_numbers_or_gaps_stay_text(work):
    make(work, sizes={"007": 2, "NA": 2}, unseen={}, task=None)
    users = read_csv(work / "reports/plots/per_user_accuracy.csv", report.TEXTS)
    assert set(users["group"]) == {"007", "NA"}
    assert "007-00" in (work / "reports/report.html").read_text(encoding="utf-8")


def test_no_table_holds_a_formula_or_markup_and_the_page_has_the_names_as_they_are(work):
    groups = ["=cmd|'/C calc'!A0", "</script><script>alert(2)</script>", "<!--<script>", "@a\u2028"]
    html = make(work, sizes=dict.fromkeys(groups, 2), unseen={}, task=None)
    check_page(html)
    for group in groups:
        assert escape(group) in html
    names = {f"{group}-0{number}" for group in groups for number in range(2)}
    for path in [*(work / "reports").glob("*.csv"), *(work / "reports/plots").glob("*.csv")]:
        text = path.read_text(encoding="utf-8")
        assert "<" not in text
        for row in csv.reader(io.StringIO(text, newline="")):
            assert not any(cell.startswith(("=", "@")) for cell in row)
        table = read_csv(path, report.TEXTS)
        if "user_id" in table:
            assert set(table["user_id"].dropna()) == (set() if "wins" in path.stem else names)
        if "group" in table:
            assert set(table["group"].dropna()) <= {*groups, "(generic user)"}


def test_reward_models_stand_below_the_methods(work):
    without = make(work)
    assert "eward model" not in check_page(without).words
    before = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))
    assert "reward_models" not in before
    shutil.copytree(work / "data/scores/pdpo", work / "data/scores/reward_pdpo")
    compare = comparing("dpo", "pdpo")
    evaluate.run(seed=7, compare=compare, reward_models=["pdpo"], evaluate=SETTINGS)
    report.run()
    metrics = json.loads((work / "reports/metrics.json").read_text(encoding="utf-8"))
    # The very scores of pdpo, so the very figures.
    assert metrics.pop("reward_models") == {"pdpo": before["accuracy"]["pdpo"]}
    spreads = metrics["interval"].pop("reward_models")
    assert spreads == {"pdpo": before["interval"]["accuracy"]["pdpo"]}
    assert metrics == before
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "Reward model of P-DPO" in page.words
    assert "A reward model writes no answers" in page.words


def test_a_missing_reward_model_is_named(work):
    make(work)
    compare = comparing("dpo", "pdpo")
    with pytest.raises(UserError, match=r"^data/scores/reward_pdpo/pairs.parquet: no such file"):
        evaluate.run(seed=7, compare=compare, reward_models=["pdpo"], evaluate=SETTINGS)


def test_hashes_are_those_of_stages_before_the_report(work):
    make(work)
    (work / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n"
        "  ingest:\n    outs:\n    - path: data/ingested\n      md5: aaaa.dir\n      size: 2048\n"
        "  validate:\n    outs:\n    - path: reports/data_docs\n      md5: bbbb.dir\n"
        "  report:\n    outs:\n    - path: reports/report.html\n      md5: cccc\n"
    )
    report.run()
    page = check_page((work / "reports/report.html").read_text(encoding="utf-8"))
    assert "data/ingested ingest aaaa.dir 2.0 kB" in page.words
    assert "bbbb" not in page.words
    assert "cccc" not in page.words


def test_parameters_are_shown_as_in_the_file(work):
    page = check_page(make(work))
    assert "seed 7" in page.words
    assert "model.revision null" in page.words
    assert "optimizer.gradient_checkpointing false" in page.words


# The headline


def metrics_with(gain, ends, same=None, users=10, units=30, **accuracy):
    known = {"macro": 0.7 + gain, "worst_user": 0.5} | accuracy
    spread = {} if ends is None else {"low": ends[0], "high": ends[1]}
    if same is not None:
        spread["same_users"] = {"low": same[0], "high": same[1]}
    return {
        "accuracy": {"dpo": {"macro": 0.7, "worst_user": 0.4}, "pdpo": known},
        "accuracy_gain": {"pdpo_vs_dpo": gain},
        "power": {
            "pdpo_vs_dpo": {
                "detectable": 0.3, "detectable_same_users": 0.24, "pairs": 1234, "users": 56,
            }
        },
        "counts": {"users": {"seen": users}, "pairs": {"seen": 300}, "units": units},
        "interval": {"level": 0.95, "accuracy_gain": {"pdpo_vs_dpo": spread}},
    }  # fmt: skip


def written(metrics, personalized=("pdpo",), subject="pdpo", **changes):
    return headline.write(metrics, personalized, subject, "dpo", margin=0.02, **changes)


SURE, UNSURE, CLOSE = (0.15, 0.25), (-0.1, 0.4), (-0.015, 0.01)


@pytest.mark.parametrize(
    ("gain", "ends", "same", "changes", "verdict"),
    [
        (0.2, (0.1, 0.3), SURE, {}, "better"),
        (0.2, UNSURE, SURE, {}, "better_here"),
        # Seven users do not speak for others, and seven prompts for none.
        (0.2, (0.1, 0.3), SURE, {"users": 7}, "better_here"),
        (0.2, (0.1, 0.3), SURE, {"units": 7}, "unclear"),
        (0.2, UNSURE, (-0.05, 0.4), {}, "unclear"),
        # Of others nothing is asked where it is not known of these.
        (0.2, (0.1, 0.3), (-0.05, 0.4), {}, "unclear"),
        (0.2, (0.0, 0.4), None, {}, "unclear"),
        (0.2, None, None, {}, "unclear"),
        (-0.2, (-0.3, -0.1), (-0.25, -0.1), {}, "worse"),
        (-0.2, (-0.3, 0.1), (-0.25, -0.1), {}, "worse_here"),
        (0.001, CLOSE, CLOSE, {}, "equal"),
        (0.001, (-0.05, 0.05), CLOSE, {}, "equal_here"),
        (0.001, CLOSE, CLOSE, {"users": 7}, "equal_here"),
        # Certain, and of no importance.
        (0.01, (0.005, 0.015), (0.006, 0.014), {}, "equal"),
        (0.0, (-0.1, 0.1), (-0.05, 0.05), {}, "unclear"),
        (0.0, (0.0, 0.0), (0.0, 0.0), {}, "same"),
    ],
)
def test_verdict_follows_the_intervals(gain, ends, same, changes, verdict):
    answer = written(metrics_with(gain, ends, same, **changes))
    assert answer.verdict == verdict
    assert answer.title == headline.TITLES[verdict]
    if abs(gain) == 0.2:
        assert f"{'gain' if gain > 0 else 'loss'} of 20 points" in answer.sentences[0]
    text = " ".join(answer.sentences)
    assert ("Whether it holds for other users" in text) == verdict.endswith("_here")
    assert ("would probably have shown" in text) == (verdict == "unclear")


def test_too_few_data_say_what_would_do():
    metrics = metrics_with(0.05, (-0.2, 0.3), (-0.15, 0.25), users=6)
    metrics["counts"]["pairs"]["seen"] = 18
    answer = written(metrics)
    assert answer.title.startswith("Too few data to tell")
    assert answer.sentences[1] == (
        "With 18 held-out choices of 6 users, only a difference of 24 points or more would "
        "probably have shown; to show one of 5, about 1,234 choices would do, and about 56 "
        "users to speak for others."
    )
    # What is looked for is at least what matters.
    metrics["accuracy_gain"]["pdpo_vs_dpo"] = 0.001
    assert "to show one of 2, about" in written(metrics).sentences[1]
    here = written(metrics_with(0.2, UNSURE, SURE)).sentences[1]
    assert here.endswith("different to say; about 56 would do, instead of 10.")


def test_where_there_is_nothing_to_gain_nothing_else_is_claimed():
    metrics = metrics_with(0.2, (0.1, 0.3), SURE)
    assert written(metrics).verdict == "better"
    answer = written(metrics, fallback=True)
    assert answer.verdict == "fallback"
    assert answer.title.startswith("Nothing to gain from knowing these users")


def test_the_worst_tenth_stands_for_the_worst_served_from_twenty_users_on():
    def answer(users):
        metrics = metrics_with(0.1, (0.05, 0.2), SURE, users=users, worst_tenth=0.65)
        metrics["accuracy"]["dpo"]["worst_tenth"] = 0.35
        metrics["worst_tenth_gain"] = {"pdpo_vs_dpo": 0.25}
        ends = {"low": 0.1, "high": 0.4}
        metrics["interval"]["worst_tenth_gain"] = {"pdpo_vs_dpo": ends}
        return written(metrics)

    few, many = answer(19), answer(20)
    assert "The user it understands least is at 50% (DPO: 40%)." in few.sentences
    assert [tile.label for tile in few.tiles][1] == "for the worst-served user"
    assert [(tile.value, tile.label) for tile in many.tiles][1] == (
        "65%", "for the worst-served tenth of users",
    )  # fmt: skip
    assert (
        "The tenth of users it understands least is at 65% (DPO: 35%). The tenth that DPO "
        "understood least, by other choices of theirs, gains 25 points (interval +10 to +40)."
    ) in many.sentences


def test_headline_without_baseline_or_personalised_method():
    metrics = metrics_with(0.1, (0.05, 0.2))
    assert written(metrics, [], "pdpo").verdict == "unknown"
    del metrics["accuracy"]["dpo"], metrics["accuracy_gain"]
    answer = written(metrics)
    assert answer.verdict == "unknown"
    assert answer.sentences[0] == "P-DPO predicts 80% of its users' held-out choices."


def test_headline_is_about_the_subject_not_the_luckiest():
    metrics = metrics_with(0.1, (0.05, 0.2))
    metrics["accuracy"]["lucky"] = {"macro": 1.0}
    metrics["accuracy_gain"]["lucky_vs_dpo"] = 0.3
    answer = written(metrics, ["lucky", "pdpo"], "pdpo")
    assert answer.sentences[0].startswith("P-DPO predicts 80% of its users' held-out choices")
    answer = written(metrics, ["pdpo", "lucky"], "lucky")
    assert answer.sentences[0].startswith("lucky predicts 100% of its users' held-out choices")
    # A method that was not evaluated, or answers no single user.
    for subject in ("absent", "dpo"):
        answer = written(metrics, ["absent", "pdpo", "lucky"], subject)
        assert answer.title == "No personalised method was evaluated."


@pytest.mark.parametrize(
    ("gains", "ends", "words"),
    [
        (
            {"unseen": -0.1, "seen": 0.02},
            {"unseen": (-0.2, -0.05), "seen": (-0.1, 0.1)},
            "personalising costs accuracy against DPO, in points: \u221210 for held-out users "
            "(interval \u221220 to \u22125) and +2 for its own users served as unknown (interval "
            "\u221210 to +10).",
        ),
        (
            {"unseen": -0.1},
            {"unseen": (-0.2, 0.05)},
            "it is not clear what personalising does to accuracy against DPO, in points: \u221210 "
            "for held-out users (interval \u221220 to +5).",
        ),
        (
            {"seen": 0.0},
            {"seen": (-0.01, 0.03)},
            "personalising costs less than 2 points against DPO, in points: 0 for its own users "
            "served as unknown (interval \u22121 to +3).",
        ),
        (
            {"seen": 0.0},
            {},
            "it is not clear what personalising does to accuracy against DPO, in points: 0 for its "
            "own users served as unknown.",
        ),
    ],
)
def test_the_headline_says_what_personalising_costs(gains, ends, words):
    metrics = metrics_with(0.1, (0.05, 0.2)) | {"generic_gain": {"pdpo_vs_dpo": gains}}
    metrics["counts"]["users"]["unseen"] = 8
    spreads = {place: {"low": low, "high": high} for place, (low, high) in ends.items()}
    metrics["interval"]["generic_gain"] = {"pdpo_vs_dpo": spreads}
    assert written(metrics).sentences[-1] == f"Where it does not know the user, {words}"
    # Of seven held-out users nothing is said.
    metrics["counts"]["users"] = {"seen": 7, "unseen": 7}
    assert "it is not clear" in written(metrics).sentences[-1]


def test_groups_that_lose_are_named():
    metrics = metrics_with(0.1, (0.05, 0.2), groups={"longer": 0.8, "shorter": 0.9})
    metrics["accuracy"]["dpo"]["groups"] = {"longer": 1.0, "shorter": 0.1}
    metrics["counts"]["groups"] = {"longer": 7, "shorter": 3}
    answer = written(metrics)
    text = " ".join(answer.sentences)
    assert "“shorter” users, from 10% to 90%" in text
    assert "“longer” users fall from 100% to 80%" in text


def test_warnings_of_bad_text_and_of_a_judge_that_users_disagree_with():
    good = {"mean_nll": 1.6, "base_mean_nll": 1.0, "empty": 0.01, "degenerate": 0.03}
    good["unfinished"] = 0.05
    metrics = metrics_with(0.1, (0.05, 0.2)) | {
        "fluency": {"pdpo": good | {"groups": {"shorter": copy.copy(good)}}},
        "judge_agreement": {"all": 0.95},
    }
    assert written(metrics).warnings == []
    metrics["fluency"]["pdpo"]["groups"]["shorter"].update(
        mean_nll=1.8, degenerate=0.1, unfinished=0.42
    )
    metrics["judge_agreement"]["all"] = 0.7
    warnings = written(metrics).warnings
    assert len(warnings) == 4
    assert "“shorter” users" in warnings[0]
    assert "0.80 nats per token above" in warnings[0]
    assert "11% of its answers" in warnings[1]
    assert "“shorter” users: 42% of its answers were cut off" in warnings[2]
    assert "70% of the users'" in warnings[3]


# Small things


def test_percentages_are_not_rounded_to_certainty():
    assert percent(1.0) == "100%"
    assert percent(0.996) == "99.6%"
    assert percent(0.9999) == "99.9%"
    assert percent(0.0) == "0%"
    assert percent(0.0004) == "0.1%"
    assert percent(0.004) == "0.4%"
    assert percent(0.125) == "12%"
    assert percent_range((0.9, 1.0)) == "90\N{EN DASH}100%"
    assert percent_range((1.0, 1.0)) == "100%"
    assert points(-0.034) == "3.4"
    assert points(0.24) == "24"


def test_ticks_are_round_and_within():
    assert ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert ticks(0.37, 1.03, 4) == [0.4, 0.6, 0.8, 1.0]
    assert ticks(-3, 3, 3) == [-2, 0, 2]
    assert ticks(2, 2) == [2]


def test_drawing_escapes_and_rounds():
    drawing = Drawing(10, 10, 'a "title" <b>')
    drawing.text(1.23456, 2, HOSTILE)
    drawing.mark(0, 1 / 3, 2, 3, fill="var(--m0)", tip=HOSTILE)
    drawing.mark(1, 5, 5, 3, fill="red", opacity=0.5)
    svg = str(drawing.render())
    assert "<script" not in svg
    assert 'x="1.23"' in svg
    ElementTree.fromstring(svg)
    assert Scale(0, 0, 10, 20)(0) == 15
    assert abridged("one\ntwo  three", 8) == "one two\N{HORIZONTAL ELLIPSIS}"
