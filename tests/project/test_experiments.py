"""Overlays on params.yaml: what they change, what is wrong with them, and how DVC takes them."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from prlhf import cli
from prlhf.infra.errors import UserError, UserErrors
from prlhf.metrics.metrics import headline_figures
from prlhf.params import Params, load
from prlhf.params.loading import overridden
from prlhf.project import experiments

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "params.yaml"


@pytest.fixture
def overlay(tmp_path, monkeypatch):
    """Write `experiments/<name>.yaml` beside a copy of the committed params.yaml."""
    shutil.copy(COMMITTED, tmp_path)
    (tmp_path / "experiments").mkdir()
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> None:
        (tmp_path / f"experiments/{name}.yaml").write_text(text, encoding="utf-8")

    return write


def fault(name: str) -> str:
    with pytest.raises(UserError) as caught:
        experiments.check(experiments.read(name))
    return str(caught.value)


@pytest.mark.parametrize("name", experiments.names(ROOT / "experiments"))
def test_every_committed_experiment_is_good(name, tmp_path):
    experiment = experiments.read(name, ROOT / "experiments")
    assert experiment.about
    assert len(experiment.about.partition(". ")[0]) <= 100
    assert experiment.changes or experiment.grid
    for changes in experiment.runs():
        path = tmp_path / "params.yaml"
        path.write_text(overridden(COMMITTED, changes), encoding="utf-8")
        params = load(path)
        if params.data.source == "builtin":
            from prlhf.ingest.sources import simulated_rows
            from prlhf.tasks import built_in_tasks

            rows = simulated_rows(
                built_in_tasks()[params.data.name],
                seed=params.seed,
                pairs_per_user=params.data.pairs_per_user,
                root=ROOT / "data/seed",
            )
            assert len(rows) == rows["user_id"].nunique() * params.data.pairs_per_user


def test_twins_differ_in_the_kind_of_user_model_alone():
    for data in ("length", "style"):
        one, other = (
            experiments.overrides(f"{data}-{kind}", ROOT / "experiments")
            for kind in ("cluster", "individual")
        )
        committed = overridden(COMMITTED, one).splitlines()
        changed = overridden(COMMITTED, other).splitlines()
        different = [pair for pair in zip(committed, changed, strict=True) if pair[0] != pair[1]]
        assert [after.split("#")[0].strip() for _, after in different] == ["kind: individual"]


def test_an_overlay_builds_on_another(overlay):
    overlay("one", "# One.\ntrain:\n  alpha: 0.25\noptimizer: {lora: {r: 4}}\n")
    overlay("two", "# Two\n# of two lines.\nextends: one\ntrain:\n  alpha: 0.75\nseed: 3\n")
    assert experiments.overrides("two") == {"train.alpha": 0.75, "optimizer.lora.r": 4, "seed": 3}
    found = experiments.read("two")
    assert found.about == "Two of two lines."
    assert found.places["optimizer.lora.r"] == "experiments/one.yaml:4"
    assert found.places["train.alpha"] == "experiments/two.yaml:5"


def test_a_grid_is_every_combination(overlay):
    overlay("base", "# Base.\ngrid:\n  train: {alpha: [0.0, 1.0]}\n  seed: [1, 2, 3]\n")
    overlay("fixed", "# One alpha.\nextends: base\ntrain: {alpha: 0.5}\n")
    runs = list(experiments.read("base").runs())
    assert runs == [
        {"train.alpha": alpha, "seed": seed} for alpha in (0.0, 1.0) for seed in (1, 2, 3)
    ]
    assert list(experiments.read("fixed").runs()) == [
        {"train.alpha": 0.5, "seed": seed} for seed in (1, 2, 3)
    ]
    with pytest.raises(UserError) as caught:
        experiments.overrides("base")
    assert str(caught.value) == (
        "experiments/base.yaml: is a grid of 6 runs "
        "(queue them: dvc exp run $(prlhf experiment flags base))"
    )


def test_an_unknown_name_is_answered_with_the_nearest(overlay):
    overlay("length-cluster", "# A.\nseed: 1\n")
    assert fault("length-clustr") == (
        "experiment length-clustr: there is no experiments/length-clustr.yaml "
        "(did you mean length-cluster?)"
    )
    assert fault("../params").endswith("(see `prlhf experiment list`)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train:\n  alhpa: 1\n", "2: train.alhpa: unknown key (did you mean train.alpha?)"),
        ("train:\n  alpha: 2\n", "2: train.alpha: must be a number (from 0 to 1), not 2"),
        ("grid:\n  train.alpha: [1, 2]\n", "2: train.alpha: must be a number (from 0 to 1), not 2"),
        ("grid:\n  train.alpha: 1\n", "2: grid.train.alpha: must list values to try"),
        ("grid: 3\n", "1: grid: must list values to try"),
        ("seed: 1\nextends: tow\n", "2: extends: there is no experiments/tow.yaml"),
        ("seed: 1\nextends: one\n", "2: extends: builds on itself: one -> one"),
        ("methods: {mine: {kind: none, text: false}}\n", "1: methods.mine.kind: must be uniform, "),
        ("seed: [\n", "2: is not valid YAML: "),
    ],
)
def test_a_fault_is_named_with_its_line(overlay, text, line):
    overlay("one", text)
    assert fault("one").startswith(f"experiments/one.yaml:{line}")


def test_what_contradicts_params_yaml(overlay):
    overlay("one", "# One.\ncompare: {trained: [pdpo]}\n")
    assert "compare.all: must name base and all of compare.trained" in fault("one")


TRICKY = [None, True, 0, -3, 1.0, 5e-05, "auto", "null", "TRUE", "1e5", "", "it's", "a,b", "[x]"]
TRICKY += ["C:\\x\\", "\\'", "~", "-", "1", "org/name", "a=b", "{", [], ["q", "null", 1, None]]


def parsed(text: str):
    [override] = OverridesParser.create().parse_overrides([f"key={text}"])
    assert not override.is_sweep_override()
    return plain(override.value())


def plain(value):
    """Hydra's quoted strings as text."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value if isinstance(value, int | float | str | None) else value.text


@pytest.mark.parametrize("value", TRICKY, ids=repr)
def test_hydra_reads_what_was_meant(value):
    found = parsed(experiments.hydra(value))
    assert found == value
    assert type(found) is type(value)


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))))
def test_hydra_reads_any_text(text):
    assert parsed(experiments.hydra(text)) == text


def applied(path: Path, words: list[str]) -> Params:
    """What `dvc exp run` makes of params.yaml, by its own code."""
    from dvc.utils.hydra import apply_overrides

    apply_overrides(path, [word for word in words if word != "-S"])
    return load(path)


def words_of_bash(name: str) -> list[str]:
    """`$(prlhf experiment flags NAME)` as a shell passes it on."""
    line = " ".join(experiments.flags(experiments.read(name)))
    script = f"printf '%s\\n' $(cat <<'EOF'\n{line}\nEOF\n)"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name",
    [name for name in experiments.names(ROOT / "experiments") if not name.startswith("grid-")],
)
def test_dvc_makes_the_same_parameters_of_the_flags(overlay, name):
    shutil.copytree(ROOT / "experiments", "experiments", dirs_exist_ok=True)
    wanted = Path("wanted.yaml")
    wanted.write_text(overridden(COMMITTED, experiments.overrides(name)), encoding="utf-8")
    assert applied(Path("params.yaml"), words_of_bash(name)) == load(wanted)


def test_dvc_makes_the_same_of_values_that_look_like_others(overlay):
    overlay(
        "tricky",
        "# Tricky.\nmodel: {revision: '1e5', name: \"it's/null\"}\n"
        "data: {hub: {config: 'null', split: 'a,b', id: '[x]'}, columns: {weight: null}}\n"
        "optimizer: {max_steps: null, lora: {targets: ['true', q_proj]}, lora_lr: 1.0e-5}\n"
        "methods: {mine: {kind: individual, text: false}}\n"
        "compare: {trained: [mine], all: [base, mine]}\n"
        "evaluate: {baseline: base, subject: mine}\n",
    )
    params = applied(Path("params.yaml"), words_of_bash("tricky"))
    assert (params.model.revision, params.model.name) == ("1e5", "it's/null")
    assert (params.data.hub.config, params.data.hub.split, params.data.hub.id) == (
        *("null", "a,b", "[x]"),
    )
    assert params.data.columns.weight is None
    assert params.optimizer.max_steps is None
    assert params.optimizer.lora.targets == ["true", "q_proj"]
    assert params.optimizer.lora_lr == 1e-5
    assert params.compare.trained == ["mine"]
    assert params.methods["mine"].kind == "individual"


def test_flags_are_words_of_a_shell(overlay):
    overlay(
        "one",
        "# One.\noptimizer: {max_steps: null, lora: {targets: [q_proj, v_proj]}}\n"
        "model: {revision: '1e5'}\nmethods: {mine: {kind: individual, text: false}}\n",
    )
    assert experiments.flags(experiments.read("one")) == [
        *("-S", "optimizer.max_steps=null"),
        *("-S", "optimizer.lora.targets=[q_proj,v_proj]"),
        *("-S", "model.revision='1e5'"),
        *("-S", "+methods.mine.kind=individual"),
        *("-S", "+methods.mine.text=false"),
    ]


def test_flags_of_a_grid_queue_it(overlay):
    overlay(
        "one",
        "# One.\nseed: 3\n"
        "grid: {train: {alpha: [0.0, 0.5]}, optimizer: {lora.targets: [all, [q]]}}\n",
    )
    assert experiments.flags(experiments.read("one")) == [
        "--queue",
        *("-S", "seed=3"),
        *("-S", "train.alpha=0.0,0.5"),
        *("-S", "optimizer.lora.targets=all,[q]"),
    ]


def test_a_value_that_a_shell_would_take_apart(overlay):
    overlay("one", "# One.\ndata: {source: local, path: my data.csv}\n")
    with pytest.raises(UserError) as caught:
        experiments.flags(experiments.read("one"))
    assert str(caught.value).startswith("experiments/one.yaml:2: data.path: holds white space")


def test_the_commands(overlay, capsys):
    overlay(
        "one",
        "# What it is. More of it.\nseed: 3\nmethods: {mine: {kind: individual, text: false}}\n",
    )
    overlay("other-one", "# Two alphas.\ngrid: {train: {alpha: [0.0, 0.25]}}\n")
    assert cli.execute(["experiment", "list"]) == 0
    assert capsys.readouterr().out == "one        What it is\nother-one  Two alphas\n"
    assert cli.execute(["experiment", "flags", "one"]) == 0
    assert (
        capsys.readouterr().out
        == "-S seed=3 -S +methods.mine.kind=individual -S +methods.mine.text=false\n"
    )
    assert cli.execute(["experiment", "show", "one"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "What it is. More of it.",
        "",
        "key                params.yaml  one",
        f"seed               {str(load(COMMITTED).seed).ljust(11)}  3",
        "methods.mine.kind  -            individual",
        "methods.mine.text  -            false",
    ]
    assert cli.execute(["experiment", "show", "other-one"]) == 0
    assert capsys.readouterr().out.endswith("each of 0.0, 0.25\n\n2 runs\n")
    assert cli.execute(["experiment", "flags", "onw"]) == 2
    assert capsys.readouterr().err.endswith("(did you mean one?)\n")


def test_key_figures_are_those_of_metrics():
    metrics = {
        "accuracy": {
            "dpo": {"macro": 0.6, "worst_user": 0.1, "unseen": 0.5},
            "pdpo": {"macro": 0.9, "worst_user": 0.8},
        },
        "win_rate": {"pdpo_vs_dpo": {"win_rate": 0.7}, "pdpo_vs_base": {"win_rate": 0.9}},
        "length": {"base": {"mean": 50.0}, "pdpo": {"mean": 20.0, "generic": 30.0}},
        "fluency": {"pdpo": {"mean_nll": 1.5, "empty": 0.1, "degenerate": 0.2}},
    }
    assert headline_figures(metrics, ["base", "dpo", "pdpo"], "dpo") == {
        "base": {"words": 50.0},
        "dpo": {"accuracy": 0.6, "worst_user": 0.1, "unseen": 0.5},
        "pdpo": {
            "accuracy": 0.9,
            "worst_user": 0.8,
            "win_rate": 0.7,
            "words": 20.0,
            "nll": 1.5,
            "broken": 0.3,
        },
    }
    assert list(itertools.chain(*headline_figures({}, ["base"], "dpo"))) == []


def test_errors_of_all_runs_are_told_once(overlay):
    overlay("one", "# One.\ntrain: {beta: 0}\ngrid: {seed: [1, 2]}\n")
    with pytest.raises(UserErrors) as caught:
        experiments.check(experiments.read("one"))
    assert len(caught.value.lines()) == 1
