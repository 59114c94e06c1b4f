"""Ablations: their files, their figures against naive ones, and what is wrong with them."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from prlhf import cli
from prlhf.infra.errors import UserError
from prlhf.metrics.intervals import Intervals
from prlhf.params import load
from prlhf.project import ablation_page, ablation_results, ablation_runs, ablations
from prlhf.project.ablation_results import Result
from prlhf.project.ablation_runs import FoundRun
from prlhf.project.ablations import Ablation, AblationRun, Setting
from prlhf.project.dvc import git

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "params.yaml"
ABLATIONS = ROOT / "experiments/ablations"
INTERVALS = Intervals()
GOOD = """\
# Two alphas.
title: Two alphas
method: pdpo
seeds: [7, 8]
settings:
  half: {train.alpha: 0.5}
  none:
    train:
      alpha: 0.0
"""


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    """Write `experiments/ablations/<name>.yaml` beside a copy of the committed params.yaml."""
    shutil.copy(COMMITTED, tmp_path)
    (tmp_path / "experiments/ablations").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"experiments/ablations/{name}.yaml").write_text(text, encoding="utf-8")

    return write


def resolved(name: str) -> list[AblationRun]:
    return ablations.resolve(ablations.read(name))


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ablations.names(ABLATIONS))
def test_every_committed_ablation_is_good(name):
    found = ablations.read(name, ABLATIONS)
    assert found.about
    runs = ablations.resolve(found, COMMITTED)
    assert len(runs) == len(found.settings) * len({*found.seeds, *found.fresh})
    assert len({run.experiment for run in runs}) == len(runs)
    # Every setting is one of its own.
    for seed in found.seeds:
        texts = [run.text for run in runs if run.seed == seed]
        assert len(set(texts)) == len(texts)
    for run in runs:
        assert run.params.seed == run.seed
        assert (run.params.data.name, run.params.compare.trained) == ("style", ["pdpo"])
        assert run.params.split.unseen_users == 0.0


def test_what_the_committed_ablations_vary():
    def values(name, get):
        runs = ablations.resolve(ablations.read(name, ABLATIONS, [7]), COMMITTED)
        return [get(run.params) for run in runs]

    assert values("user-model", lambda p: p.methods["pdpo"].kind) == [
        "uniform", "individual", "cluster",
    ]  # fmt: skip
    assert values("clusters", lambda p: p.user_model.clusters) == [1, 2, 3, 6, "auto"]
    assert values("alpha", lambda p: p.train.alpha) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values("user-tokens", lambda p: p.user_model.tokens) == [1, 2, 4, 10]
    assert values("pretraining", lambda p: p.pretrain.method) == ["none", "reward", "soft_prompt"]


def test_pretraining_is_compared_at_an_equal_budget():
    for run in ablations.resolve(ablations.read("pretraining", ABLATIONS), COMMITTED):
        params = run.params
        soft = params.pretrain.method == "soft_prompt"
        before = params.pretrain.soft_prompt_steps if soft else 0
        assert before + params.optimizer.max_steps == 45
        assert params.pretrain.soft_prompt_batch_size == params.optimizer.batch_size


def test_settings_and_seeds_make_the_runs(ablation):
    ablation("two", GOOD)
    runs = resolved("two")
    assert [(run.experiment, run.seed, run.params.train.alpha) for run in runs] == [
        ("ablate-two-half-7", 7, 0.5),
        ("ablate-two-none-7", 7, 0.0),
        ("ablate-two-half-8", 8, 0.5),
        ("ablate-two-none-8", 8, 0.0),
    ]
    assert ablations.read("two").baseline == "half"
    committed = load(COMMITTED)
    assert runs[2].params == committed.model_copy(update={"seed": 8})


def test_what_settings_share(ablation):
    Path("experiments/small.yaml").write_text(
        "# Small.\noptimizer: {max_steps: 3}\ntrain: {alpha: 0.1}\n", encoding="utf-8"
    )
    shared = "extends: small\nbase: {train.beta: 0.2, optimizer.lora: {r: 2}}\nbaseline: none\n"
    ablation("two", GOOD + shared)
    found = ablations.read("two")
    assert found.baseline == "none"
    assert found.shared == {
        "optimizer.max_steps": 3,
        "train.alpha": 0.1,
        "train.beta": 0.2,
        "optimizer.lora.r": 2,
    }
    for run, alpha in zip(resolved("two"), (0.5, 0.0, 0.5, 0.0), strict=True):
        train, optimizer = run.params.train, run.params.optimizer
        assert (train.alpha, train.beta) == (alpha, 0.2)
        assert (optimizer.max_steps, optimizer.lora.r) == (3, 2)


PLACE = "experiments/ablations/two.yaml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("alpha: 0.0", "alhpa: 0.0", f"{PLACE}:9: train.alhpa: unknown key (did you mean train.al"),
        ("0.5", "1.5", f"{PLACE}:6: train.alpha: must be a number (from 0 to 1), not 1.5"),
        ("title:", "tilte:", f"{PLACE}:2: tilte: unknown key (did you mean title?)"),
        ("method: pdpo\n", "", f"{PLACE}: method: missing key"),
        ("pdpo", "pdpo_text", f"{PLACE}:3: method: pdpo_text: is not trained under half (compare"),
        ("[7, 8]", "[7, 7]", f"{PLACE}:4: seeds: must list whole numbers, each once"),
        ("[7, 8]", "[-1]", f"{PLACE}:4: seed: must be "),
        ("{train.alpha: 0.5}", "{seed: 3}", f"{PLACE}:6: seed: is what seeds lists"),
        ("{train.alpha: 0.5}", "0.5", f"{PLACE}:6: settings.half: must hold the keys that it"),
        ("half:", "on/off:", f"{PLACE}:6: settings.on/off: is no name for a setting"),
        ("  half: {train.alpha: 0.5}\n", "", f"{PLACE}:5: settings: must hold two settings"),
        ("title", "baseline: nil\ntitle", f"{PLACE}:2: baseline: nil: is no setting (settings has"),
        ("title", "extends: smal\ntitle", f"{PLACE}:2: extends: there is no experiments/smal.yaml"),
        ("half: {", "half: [", f"{PLACE}:6: is not valid YAML: "),
    ],
)
def test_a_fault_is_named_with_its_line(ablation, capsys, old, new, message):
    ablation("two", GOOD.replace(old, new, 1))
    assert cli.execute(["ablate", "two"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") >= 1
    assert "Traceback" not in printed


def test_an_unknown_name_is_answered_with_the_nearest(ablation, capsys):
    ablation("two", GOOD)
    assert cli.execute(["ablate", "tow"]) == 2
    assert capsys.readouterr().err == (
        "error: prlhf ablate tow: there is no experiments/ablations/tow.yaml (did you mean two?)\n"
    )
    assert cli.execute(["ablate", "--list"]) == 0
    assert capsys.readouterr().out == "two  Two alphas: half, none (4 runs)\n"
    assert cli.execute(["ablate", "two", "--seeds", "7,x"]) == 2
    assert "--seeds" in capsys.readouterr().err
    assert cli.execute(["ablate"]) == 2
    assert "prlhf ablate --list" in capsys.readouterr().err


# -- statistics ------------------------------------------------------------------------------------


def crossed(table, sizes=20, estimate=INTERVALS.share):
    """The estimate of a table of users and seeds; NaN where there is no figure."""
    by_seed = [
        {str(user): value for user, value in enumerate(column) if np.isfinite(value)}
        for column in np.asarray(table).T
    ]
    pairs = [dict.fromkeys(values, sizes) for values in by_seed]
    return ablation_results._crossed(estimate, by_seed, pairs)


def test_the_mean_is_over_all_users_and_seeds():
    table = [[0.5, 1.0], [0.25, np.nan], [np.nan, np.nan]]
    assert crossed(table).value == pytest.approx((0.5 + 1.0 + 0.25) / 3)
    assert crossed(np.full((2, 2), np.nan)) is None
    assert crossed(np.empty((0, 2))) is None
    assert crossed([[0.5, 0.7]]).interval is None


def test_with_one_seed_it_is_the_interval_over_users():
    values = np.random.default_rng(0).uniform(-0.5, 0.5, 12)
    found = crossed(values[:, None], 1000, INTERVALS.difference)
    half = stats.t.ppf(0.975, 11) * values.std(ddof=1) / np.sqrt(12)
    assert found.interval == pytest.approx((values.mean() - half, values.mean() + half), abs=1e-3)


def test_seeds_that_disagree_widen_the_interval():
    users = np.linspace(-0.1, 0.1, 6)[:, None]
    alike = crossed(users + np.zeros(4), 1000, INTERVALS.difference).interval
    apart = crossed(users + np.linspace(-0.3, 0.3, 4), 1000, INTERVALS.difference).interval
    assert apart.high - apart.low > 2 * (alike.high - alike.low)


# -- tables ----------------------------------------------------------------------------------------

USERS = ("ada", "ben", "cy")
SEEDS = (7, 8)
ACCURACY = {
    "one": {7: (0.5, 0.6, 0.7), 8: (0.6, 0.6, 0.9)},
    "two": {7: (0.9, 0.8, 0.7), 8: (1.0, 0.7, 0.8)},
}
VALIDATION = {
    "one": {7: (0.9, 0.9, 0.9), 8: (0.1, 0.1, 0.1)},
    "two": {7: (0.5, 0.6, 0.7), 8: (0.6, 0.6, 0.6)},
}
GENERIC = {name: dict.fromkeys(SEEDS, (0.3, 0.4, 0.5)) for name in ACCURACY}


def comparison(
    *, kinds=("uniform", "cluster"), dpo=(), seconds=None, fresh=()
) -> ablation_results.AblationTable:
    """Two settings, two seeds, three users, with the figures above."""
    params = load(COMMITTED)
    settings = [
        Setting(name, {"methods.pdpo.kind": kind}, {}, {})
        for name, kind in zip(ACCURACY, kinds, strict=True)
    ]
    about = Ablation(
        "ab", "About.", "A title", "pdpo", "", SEEDS, fresh, "one", settings, {"train.alpha": 0.5}
    )
    runs, found = [], []
    for seed in SEEDS:
        for setting in settings:
            name = setting.name
            method = params.methods["pdpo"].model_copy(
                update={"kind": setting.own["methods.pdpo.kind"]}
            )
            typed = params.model_copy(update={"methods": {"pdpo": method}})
            run = AblationRun(f"ablate-ab-{name}-{seed}", name, seed, "", typed)
            runs.append(run)
            found.append(
                Result(
                    FoundRun(run, "c" * 40, "s" * 40),
                    served=dict(zip(USERS, ACCURACY[name][seed], strict=True)),
                    validation=dict(zip(USERS, VALIDATION[name][seed], strict=True)),
                    sizes=dict.fromkeys(USERS, 30.0),
                    validation_sizes=dict.fromkeys(USERS, 10.0),
                    generic=dict(zip(USERS, GENERIC[name][seed], strict=True)),
                    unseen={},
                    baseline=dict(zip(USERS, dpo, strict=False)),
                    figures={"worst_user": min(ACCURACY[name][seed]), "nll": 1.0 + seed},
                    seconds=seconds,
                )
            )
    return ablation_results.tabulate(about, runs, found, INTERVALS)


def test_figures_of_a_setting_against_naive_ones():
    one, two = comparison().rows
    assert one.accuracy.value == pytest.approx((0.5 + 0.6 + 0.7 + 0.6 + 0.6 + 0.9) / 6)
    assert two.accuracy.value == pytest.approx((0.9 + 0.8 + 0.7 + 1.0 + 0.7 + 0.8) / 6)
    assert one.difference is None
    differences = np.array([[0.4, 0.4], [0.2, 0.1], [0.0, -0.1]])
    assert two.difference.value == pytest.approx(differences.mean())
    # Users and seeds by hand: 2 and 1 degrees of freedom, together Satterthwaite's.
    residuals = (differences - differences.mean()) / 6
    users, seeds, cells = (
        (residuals.sum(axis=axis) ** 2).sum() if axis is not None else (residuals**2).sum()
        for axis in (1, 0, None)
    )
    parts = [(users * 3 / 2, 2), (seeds * 2, 1)]
    variance = max(sum(part for part, _ in parts) - cells, parts[0][0], parts[1][0])
    freedom = max(variance**2 / sum(part**2 / free for part, free in parts), 1)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
    low, high = differences.mean() - half, differences.mean() + half
    assert two.difference.interval == pytest.approx((max(low, -1), min(high, 1)))
    assert two.worst_user == pytest.approx((0.7 + 0.7) / 2)
    assert two.generic.value == pytest.approx(0.4)
    assert two.nll == pytest.approx(8.5)
    assert (two.users, two.seeds, two.unseen, two.words) == (3, [7, 8], None, None)


def test_settings_are_chosen_on_validation_and_told_by_fresh_seeds():
    table = comparison()
    assert [row.validation.value for row in table.rows] == pytest.approx([0.5, 0.6])
    assert table.best == "two"
    text = ablation_page.text(table)
    assert "Best on pairs of validation, with seeds 7, 8: two. No seed is fresh" in flat(text)
    # With seed 7 alone to choose by, the other is best; what is told is of seed 8 alone.
    about = replace(table.ablation, seeds=(7,), fresh=(8,))
    runs = [each.found.run for each in table.results]
    fresh = ablation_results.tabulate(about, runs, table.results, INTERVALS)
    assert [row.validation.value for row in fresh.rows] == pytest.approx([0.9, 0.6])
    assert fresh.best == "one"
    assert [row.seeds for row in fresh.rows] == [[8], [8]]
    assert fresh.rows[0].accuracy.value == pytest.approx((0.6 + 0.6 + 0.9) / 3)
    assert "mean over 3 users and seed 8." in flat(ablation_page.text(fresh))
    assert "No setting is chosen by seed 8, fresh" in flat(ablation_page.text(fresh))
    tree = ablation_page.as_json(fresh)
    assert (tree["seeds"], tree["best_on_validation"]) == (
        {"chosen_by": (7,), "reported": (8,)}, "one",
    )  # fmt: skip


def flat(text: str) -> str:
    return " ".join(text.split())


def test_fresh_seeds_run_as_well_and_are_no_others(ablation):
    ablation("two", GOOD.replace("seeds: [7, 8]", "seeds: [7]\nfresh: [9]"))
    assert [run.seed for run in resolved("two")] == [7, 7, 9, 9]
    assert ablations.read("two", seeds=[3]).fresh == ()
    ablation("two", GOOD.replace("seeds: [7, 8]", "seeds: [7]\nfresh: [7]"))
    with pytest.raises(UserError, match=r"two.yaml:5: fresh: must list seeds that settings are"):
        ablations.read("two")


def test_the_cost_is_against_one_model_for_all():
    one, two = comparison().rows
    assert one.cost is None
    assert two.cost.value == pytest.approx(0.4 - 3.9 / 6)
    own = comparison(dpo=(0.5, 0.5, 0.5)).rows
    assert [row.cost.value for row in own] == pytest.approx([-0.1, -0.1])
    assert [row.cost for row in comparison(kinds=("cluster", "individual")).rows] == [None, None]


def test_the_baseline_is_that_of_the_run_s_own_parameters(monkeypatch):
    """`evaluate.baseline` says whose accuracies are those of one model for all users."""
    run = comparison().results[0].found.run
    evaluate = run.params.evaluate.model_copy(update={"baseline": "mine"})
    run = run._replace(params=run.params.model_copy(update={"evaluate": evaluate}))
    files = {
        "reports/per_user.csv": "user_id,seen,pairs,accuracy_dpo,accuracy_mine,accuracy_pdpo,"
        "pairs_validation,validation_pdpo\nada,True,4,0.1,0.5,0.75,2,0.5\n"
        "ben,False,2,0.1,0.5,0.5,,\n",
        "reports/headline.json": '{"pdpo": {"words": 20.0, "accuracy": 0.75}}',
    }
    monkeypatch.setattr(ablation_results, "show", lambda project, commit, path: files[path])
    project = ablation_runs.Project(Path("a"), Path("a"), "c" * 40, Path("cache"), frozenset())
    found = ablation_results.read_result(project, FoundRun(run, "c" * 40, "s" * 40), "pdpo")
    assert (found.served, found.unseen) == ({"ada": 0.75}, {"ben": 0.5})
    assert (found.baseline, found.generic) == ({"ada": 0.5}, {})
    assert (found.validation, found.validation_sizes) == ({"ada": 0.5}, {"ada": 2.0})
    assert found.sizes == {"ada": 4.0, "ben": 2.0}
    assert (found.figures, found.seconds) == ({"words": 20.0}, None)


def test_missing_runs_are_named_and_left_out_of_pairs():
    table = comparison()
    kept = [each for each in table.results if each.found.run.experiment != "ablate-ab-one-8"]
    runs = [each.found.run for each in table.results]
    part = ablation_results.tabulate(table.ablation, runs, kept, INTERVALS)
    assert part.missing == ["ablate-ab-one-8"]
    assert part.rows[0].seeds == [7]
    # On seed 7 alone.
    assert part.rows[1].difference.value == pytest.approx((0.4 + 0.2 + 0.0) / 3)
    assert ablation_page.text(part).splitlines()[1].endswith("seeds")


def test_the_pages_say_the_same():
    table = comparison(seconds=12.4)
    text = ablation_page.markdown(table, "ab.svg")
    assert (
        "| Setting | On validation | Accuracy | Against one | Worst user | As unknown | Cost |"
        in text
    )
    lines = [line for line in text.splitlines() if line.startswith("| two")]
    assert [cell.strip() for cell in lines[0].split("|")][1:5] == [
        "two",
        ablation_page._share(table.rows[1].validation),
        ablation_page._share(table.rows[1].accuracy),
        ablation_page._points(table.rows[1].difference),
    ]
    assert ablation_page._points(table.rows[1].difference).startswith("+16.7 (")
    assert "| two | `methods.pdpo.kind=cluster` |" in text
    assert "All runs: `train.alpha=0.5`." in text
    assert "12 s" in lines[0]
    rows = list(csv.DictReader(StringIO(ablation_page.rows_csv(table))))
    assert [row["setting"] for row in rows] == ["one", "two"]
    assert rows[0]["difference"] == ""
    assert float(rows[1]["difference"]) == pytest.approx(1 / 6, abs=1e-6)
    low, high = float(rows[1]["difference_low"]), float(rows[1]["difference_high"])
    assert (low, high) == pytest.approx(table.rows[1].difference.interval, abs=1e-6)
    tree = ablation_page.as_json(table)
    assert tree["settings"][1]["figures"]["difference"]["low"] == low
    assert tree["settings"][1]["runs"][0]["users"] == {"ada": 0.9, "ben": 0.8, "cy": 0.7}
    assert max(map(len, ablation_page.text(table).splitlines()[-3:])) <= ablation_page.WIDTH


def test_the_drawing_has_a_bar_for_each_difference():
    drawn = ablation_page.draw(comparison())
    assert drawn.count('class="bar"') == 1
    assert "two: +16.7" in drawn
    assert "one: +0.0" in drawn
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


# -- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def project(ablation, tmp_path, monkeypatch):
    """A project of one stage that reads a directory of code, with an ablation of one run each."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "Someone")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "someone@example.org")
    ablation("two", GOOD)
    files = {
        ".dvc/config": "",
        ".dvcignore": "__pycache__/\n",
        ".gitignore": "/site\n/.dvc/tmp\n",
        "src/code/run.py": "one\n",
        "dvc.yaml": "stages: {a: {cmd: cp src/code/run.py out, deps: [src/code], outs: [out]}}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def commit(path: Path) -> None:
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message", "a change")


def keep_experiment(run: AblationRun, reads: str = "{path: src/code}") -> None:
    """As DVC keeps a run that started from HEAD: a commit that only `refs/exps` knows."""
    head = git(Path(), "rev-parse", "HEAD").strip()
    Path("params.yaml").write_text(run.text, encoding="utf-8")
    lock = f"stages: {{a: {{deps: [{reads}], outs: [{{path: out}}]}}}}\n"
    Path("dvc.lock").write_text(lock, encoding="utf-8")
    commit(Path())
    git(Path(), "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{run.experiment}", "HEAD")
    git(Path(), "reset", "--quiet", "--hard", head)


def test_runs_start_from_a_commit_that_has_the_directory_as_it_is(project):
    runs = resolved("two")
    found = ablation_runs.project_to_run()
    assert "src/code" in found.reads
    ablation_runs.require_committed(found, runs)
    Path("src/code/__pycache__").mkdir()
    Path("src/code/__pycache__/run.pyc").write_bytes(b"compiled")
    Path("notes.txt").write_text("read by no stage\n", encoding="utf-8")
    ablation_runs.require_committed(found, runs)
    for name in ("src/code/run.py", "src/code/more.py"):
        Path(name).write_text("other\n", encoding="utf-8")
        with pytest.raises(UserError, match=rf"^prlhf ablate: {name} changed since the last"):
            ablation_runs.require_committed(found, runs)
        commit(project)


def test_runs_are_kept_until_a_file_in_the_directory_changes(project):
    runs = resolved("two")
    keep_experiment(runs[0])
    wanted = {runs[0].experiment}
    assert ablation_runs.find(ablation_runs.project_to_run(), runs).keys() == wanted
    Path("src/code/__pycache__").mkdir()
    Path("src/code/__pycache__/run.pyc").write_bytes(b"compiled")
    Path("notes.txt").write_text("read by no stage\n", encoding="utf-8")
    commit(project)
    assert ablation_runs.find(ablation_runs.project_to_run(), runs).keys() == wanted
    Path("src/code/more.py").write_text("more\n", encoding="utf-8")
    commit(project)
    assert not ablation_runs.find(ablation_runs.project_to_run(), runs)


def test_runs_may_read_a_file_outside_and_are_kept_until_it_changes(
    project, ablation, tmp_path_factory
):
    feedback = tmp_path_factory.mktemp("outside") / "feedback.jsonl"
    feedback.write_text("{}\n", encoding="utf-8")
    ablation("two", f"{GOOD}base: {{data.source: local, data.path: '{feedback}'}}\n")
    commit(project)
    runs = resolved("two")
    ablation_runs.require_committed(ablation_runs.project_to_run(), runs)
    known = hashlib.md5(feedback.read_bytes(), usedforsecurity=False).hexdigest()
    keep_experiment(runs[0], f"{{path: src/code}}, {{path: {feedback}, md5: {known}}}")
    wanted = {runs[0].experiment}
    assert ablation_runs.find(ablation_runs.project_to_run(), runs).keys() == wanted
    Path("notes.txt").write_text("read by no stage\n", encoding="utf-8")
    commit(project)
    assert ablation_runs.find(ablation_runs.project_to_run(), runs).keys() == wanted
    feedback.write_text("{}\n{}\n", encoding="utf-8")
    assert not ablation_runs.find(ablation_runs.project_to_run(), runs)
    feedback.unlink()
    assert not ablation_runs.find(ablation_runs.project_to_run(), runs)


def test_lines_that_announce_runs():
    run = comparison().results[1].found.run
    project = ablation_runs.Project(Path("a"), Path("a"), "c" * 40, Path("cache"), frozenset())
    runner = ablation_runs.Runner(project, 15, jobs=2)
    runner.begun = 2
    assert runner.announce("pretraining", run) == "3/15 pretraining: two, seed 7"
    runner.took += [60.0, 120.0]
    assert runner.announce("pretraining", run) == "4/15 pretraining: two, seed 7, ETA 9:00"


def test_a_run_without_figures_is_named(monkeypatch):
    found = comparison().results[0].found
    monkeypatch.setattr(ablation_results, "show", lambda *_: "user_id,seen\nada,True\n")
    with pytest.raises(UserError) as caught:
        ablation_results.read_result(None, found, "pdpo")
    assert str(caught.value).startswith(
        "experiment ablate-ab-one-7: has no accuracy of pdpo in reports/per_user.csv"
    )
