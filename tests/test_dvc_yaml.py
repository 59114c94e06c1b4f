"""dvc.yaml says what is true of the code: dependencies, parameters, commands."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import sync_dvc_deps
from prlhf.params.describe import keys_of
from prlhf.params.schema import Params
from prlhf.stage_list import STAGES, Stage

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
DECLARED = YAML(typ="safe").load(TEXT)["stages"]

each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def stage_source(stage: Stage) -> ast.Module:
    path = ROOT / "src" / "prlhf" / "stages" / f"{stage.module}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_command_line_and_dvc_yaml_have_the_same_stages():
    assert list(DECLARED) == [stage.name for stage in STAGES]


def test_code_dependencies_are_what_stages_import():
    """`python tools/sync_dvc_deps.py` mends this."""
    assert sync_dvc_deps.differences(TEXT) == []


def test_syncing_twice_changes_nothing():
    once = sync_dvc_deps.synced(TEXT)
    assert sync_dvc_deps.synced(once) == once
    assert YAML(typ="safe").load(once)["stages"] == DECLARED


def test_every_data_file_of_the_package_is_a_dependency():
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src" / "prlhf").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and path.name != "py.typed"
    }
    declared = {dep for stage in DECLARED.values() for dep in stage["deps"]}
    assert files - declared == set()


def test_no_stage_depends_on_the_command_line_or_on_all_parameters():
    """A key added to one section, or an option to one command, must not re-run every stage."""
    for name, stage in DECLARED.items():
        for dep in stage["deps"]:
            assert not dep.startswith(("src/prlhf/params/", "src/prlhf/cli.py")), name


def test_the_package_itself_holds_nothing_that_stages_run():
    """Its __init__ is left out of the dependencies."""
    tree = ast.parse((ROOT / "src" / "prlhf" / "__init__.py").read_text(encoding="utf-8"))
    assert [type(node) for node in tree.body] == [ast.Expr, ast.FunctionDef]
    assert tree.body[1].name == "__getattr__"


@each_stage
def test_parameters_are_those_that_the_module_declares(stage):
    [declared] = [
        ast.literal_eval(node.value)
        for node in stage_source(stage).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
        == "PARAMS"
    ]
    in_dvc = {key.replace("${item.method}", "*") for key in DECLARED[stage.name].get("params", [])}
    assert set(declared) == in_dvc
    assert {key.partition(".")[0] for key in in_dvc} <= set(keys_of(Params))


@each_stage
def test_run_takes_what_is_declared_and_nothing_else(stage):
    [run] = [
        node
        for node in stage_source(stage).body
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    ]
    names = {"validate": "rules", "methods.${item.method}": "method"}
    declared = DECLARED[stage.name].get("params", [])
    wanted = {names.get(key, key.rpartition(".")[2]) for key in declared}
    if stage.methods:
        wanted.add("name")
    assert {argument.arg for argument in run.args.kwonlyargs} == wanted
    assert not run.args.args
    assert not run.args.kwarg


@each_stage
def test_commands_run_the_stage_for_each_method(stage):
    declared = DECLARED[stage.name]
    lists = {
        "": [],
        "trained": ["${compare.trained}"],
        "all": ["${compare.all}"],
        "rewarded": ["${reward_models}"],
    }
    assert list(declared.get("matrix", {}).values()) == lists[stage.methods]
    option = " --method ${item.method}" if stage.methods else ""
    assert declared["cmd"] == f"prlhf {stage.command}{option}"
    assert declared["desc"]


def test_the_prompted_method_has_a_directory_like_a_trained_one():
    """`generate` and `score` depend on models/METHOD, whatever the method."""
    assert "models/prompted" in DECLARED["reference"]["outs"]
    for name in ("generate", "score"):
        assert "models/${item.method}" in DECLARED[name]["deps"]


def test_dvc_expands_the_graph():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        graph = repo.index.graph
        stages = {stage.name: stage for stage in repo.index.stages}
        # DVC's edges point from a stage to what it depends on.
        needs = {name: {s.name for s in graph.successors(stage)} for name, stage in stages.items()}
    assert {"train@dpo", "train@pdpo", "generate@base", "score@base"} < set(stages)
    assert "train@base" not in stages
    assert needs["base_model"] == needs["ingest"] == set()
    assert needs["validate"] == {"ingest"}
    assert needs["train@pdpo"] == {"base_model", "validate", "reference", "pretrain_user_model"}
    assert needs["generate@base"] == {"base_model", "validate"}
    assert needs["generate@pdpo"] == {"base_model", "validate", "train@pdpo"}
    assert {"score@base", "score@dpo", "score@pdpo"} <= needs["judge"]
    assert "judge" in needs["evaluate"]
    assert "train@pdpo" not in needs["reference"]


@pytest.mark.parametrize("names", [[], ["pdpo"], ["dpo", "pdpo"]])
def test_reward_models_are_those_asked_for(tmp_path, names):
    """None by default: DVC makes no stage of an empty list."""
    from dvc.repo import Repo

    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert "reward_models: []" in text
    asked = text.replace("reward_models: []", f"reward_models: [{', '.join(names)}]")
    (tmp_path / "params.yaml").write_text(asked, encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(TEXT, encoding="utf-8")
    Repo.init(str(tmp_path), no_scm=True).close()
    with Repo(str(tmp_path)) as repo:
        stages = {stage.name: stage for stage in repo.index.stages}
        needs = {
            name: {other.name for other in repo.index.graph.successors(stage)}
            for name, stage in stages.items()
        }
    trained = {f"train_reward_model@{name}" for name in names}
    scored = {f"score_rewards@{name}" for name in names}
    assert {name for name in needs if "reward" in name} == trained | scored
    for name in trained:
        assert needs[name] == {"base_model", "validate", "pretrain_user_model"}
    answers = {"base_model", "validate", "generate@base", "generate@dpo", "generate@pdpo"}
    for name in names:
        assert needs[f"score_rewards@{name}"] == answers | {f"train_reward_model@{name}"}
    # The judge looks at the scores of whatever has been scored.
    assert scored <= needs["judge"]


@pytest.fixture
def package(tmp_path):
    """Write a package `prlhf` under a root of its own: path -> text."""

    def write(**files: str) -> Path:
        for name, text in {"__init__": "", **files}.items():
            stem, _, suffix = name.replace("__init__", "INIT").partition("___")
            path = stem.replace("__", "/").replace("INIT", "__init__")
            target = tmp_path / "src" / "prlhf" / f"{path}.{suffix or 'py'}"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path

    return write


def found(root: Path) -> set[str]:
    return {
        path.removeprefix("src/prlhf/")
        for path in sync_dvc_deps.code_dependencies("prlhf.stages.one", root)
    }


def test_imports_are_followed_to_their_end(package):
    root = package(
        stages__one="import os\nimport prlhf.a\nfrom prlhf import b\n",
        a="from prlhf.deep.c import name\n",
        b="",
        deep__c="from . import d\nfrom ..e import other\n",
        deep__d="",
        e="import prlhf.stages.one\n",
        unused="",
    )
    assert found(root) == {"stages/one.py", "a.py", "b.py", "deep/c.py", "deep/d.py", "e.py"}


def test_imports_in_functions_count_and_those_for_types_do_not(package):
    root = package(
        stages__one=(
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from prlhf.types import T\n"
            "else:\n    import prlhf.fallback\n"
            "def run():\n    if True:\n        from prlhf.late import f\n"
        ),
        types="",
        fallback="",
        late="",
    )
    assert found(root) == {"stages/one.py", "fallback.py", "late.py"}


def test_a_package_counts_when_its_init_does_something(package):
    root = package(
        stages__one="from prlhf.talks.x import f\nfrom prlhf.silent.x import g\n",
        talks____init__="from prlhf.talks.y import h\n",
        talks__x="",
        talks__y="",
        silent____init__='"""Only words."""\n',
        silent__x="",
    )
    assert found(root) == {
        "stages/one.py",
        "talks/__init__.py",
        "talks/x.py",
        "talks/y.py",
        "silent/x.py",
    }


def test_templates_count_with_those_they_include(package):
    root = package(
        stages__one='PAGE = "templates/page.j2"\n',
        templates__page___j2="{% include 'part.j2' %}",
        templates__part___j2="",
        templates__other___j2="",
    )
    assert found(root) == {"stages/one.py", "templates/page.j2", "templates/part.j2"}
