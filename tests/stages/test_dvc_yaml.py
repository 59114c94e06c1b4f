"""dvc.yaml says what is true of the code: dependencies, parameters, commands."""

import ast
from pathlib import Path
from typing import NamedTuple

import pytest
from ruamel.yaml import YAML

from prlhf.params.schema import Params
from prlhf.params.section import keys_of
from prlhf.stages import STAGES, Stage
from prlhf.stages.paths import FOLDERS
from source_tree import PACKAGE, ROOT, modules, reached

TEXT = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
DECLARED = YAML(typ="safe").load(TEXT)["stages"]

each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


def stage_source(stage: Stage) -> ast.Module:
    path = ROOT / "src" / "prlhf" / "stages" / f"{stage.name}.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def test_the_command_line_and_dvc_yaml_have_the_same_stages():
    assert list(DECLARED) == [stage.name for stage in STAGES]


def free(module: str) -> bool:
    """Whether no stage depends on it: no result does."""
    rooms = (f"{PACKAGE}.infra", f"{PACKAGE}.params")
    single = {PACKAGE, f"{PACKAGE}.stages", f"{PACKAGE}.stages.paths"}
    return module in single or module.startswith(rooms)


def covered(path: Path, dependency: str) -> bool:
    """Whether a declared dependency is a file, or a directory that holds it."""
    return Path(dependency) in {path, *path.parents}


def code_of(stage: str) -> list[str]:
    return [dep for dep in DECLARED[stage]["deps"] if dep.startswith("src/")]


@each_stage
def test_code_dependencies_are_what_the_stage_imports(stage):
    """Add what is missing to `deps` in dvc.yaml, else a change of that code re-runs nothing."""
    names = reached(f"{PACKAGE}.stages.{stage.name}")
    used = {modules()[name].path for name in names if not free(name)}
    declared = code_of(stage.name)
    missing = {path.as_posix() for path in used if not any(covered(path, d) for d in declared)}
    needless = {dep for dep in declared if not any(covered(path, dep) for path in used)}
    assert (missing, needless) == (set(), set())
    assert len(declared) == len(set(declared))


def test_code_dependencies_are_few():
    """Directories, but where a stage uses one module of many."""
    assert sum(len(code_of(name)) for name in DECLARED) <= 70


def test_every_data_file_of_the_package_is_a_dependency():
    files = {
        path.relative_to(ROOT)
        for path in (ROOT / "src" / PACKAGE).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and path.name != "py.typed"
    }
    assert files
    declared = {dep for stage in DECLARED for dep in code_of(stage)}
    assert {file for file in files if not any(covered(file, dep) for dep in declared)} == set()


def test_no_stage_depends_on_messages_parameters_or_the_command_line():
    """A better message, a key added to one section or an option must not re-run anything."""
    for name in DECLARED:
        for dep in code_of(name):
            assert not dep.startswith(("src/prlhf/infra", "src/prlhf/params", "src/prlhf/cli")), (
                name
            )


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
    names = {"validate": "rules", "methods.${item.method}": "method", "compare.all": "compared"}
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


def test_the_folders_of_all_outputs_are_known():
    """They are checked before a stage runs: DVC keeps nothing behind links out of the project."""
    outs = [
        next(iter(out)) if isinstance(out, dict) else out
        for stage in DECLARED.values()
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]
    ]
    assert {Path(out).parent for out in outs} == set(FOLDERS)


class Expanded(NamedTuple):
    """The stages that DVC makes of dvc.yaml, by name: those they need, and the paths they read."""

    needs: dict[str, set[str]]
    reads: dict[str, set[str]]


def expanded(project: Path) -> Expanded:
    from dvc.repo import Repo

    with Repo(str(project)) as repo:
        # DVC's edges point from a stage to what it depends on.
        graph, stages = repo.index.graph, repo.index.stages
        return Expanded(
            {stage.name: {other.name for other in graph.successors(stage)} for stage in stages},
            {stage.name: {dep.def_path for dep in stage.deps} for stage in stages},
        )


def expanded_with(project: Path, default: str, asked: str) -> Expanded:
    """The same in a new project whose parameters have one line changed."""
    from dvc.repo import Repo

    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    assert default in text
    (project / "params.yaml").write_text(text.replace(default, asked), encoding="utf-8")
    (project / "dvc.yaml").write_text(TEXT, encoding="utf-8")
    Repo.init(str(project), no_scm=True).close()
    return expanded(project)


def test_dvc_expands_the_graph():
    needs = expanded(ROOT).needs
    assert {"train@dpo", "train@pdpo", "generate@base", "score@base"} < set(needs)
    assert "train@base" not in needs
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
    asked = f"reward_models: [{', '.join(names)}]"
    needs = expanded_with(tmp_path, "reward_models: []", asked).needs
    trained = {f"train_reward_model@{name}" for name in names}
    scored = {f"score_rewards@{name}" for name in names}
    assert {name for name in needs if "reward" in name} == trained | scored
    for name in trained:
        assert needs[name] == {"base_model", "validate", "reference", "pretrain_user_model"}
    answers = {f"generate@{name}" for name in ("base", "dpo", "pdpo")}
    answers |= {"base_model", "validate", "reference"}
    for name in names:
        assert needs[f"score_rewards@{name}"] == answers | {f"train_reward_model@{name}"}
    # The judge looks at the scores of whatever has been scored.
    assert scored <= needs["judge"]


@pytest.mark.parametrize("start", ["models/base", "earlier"])
def test_training_depends_on_what_it_goes_on_from(tmp_path, start):
    graph = expanded_with(tmp_path, "start_from: models/base", f"start_from: {start}")
    needs, read = graph.needs["train@pdpo"], graph.reads["train@pdpo"]
    assert {start, "models/base/prlhf_source.json"} < read
    assert "base_model" in needs


@pytest.fixture
def package(tmp_path):
    """Write a package `prlhf` under a root of its own: path without suffix -> text."""

    def write(files: dict[str, str]) -> Path:
        for name, text in {"__init__": "", **files}.items():
            target = tmp_path / "src" / PACKAGE / f"{name}.py"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        return tmp_path

    return write


def found(root: Path) -> set[str]:
    return {name.removeprefix("prlhf.") for name in reached("prlhf.stages.one", root)}


def test_imports_are_followed_to_their_end(package):
    root = package(
        {
            "stages/one": "import os\nimport prlhf.a\nfrom prlhf import b\n",
            "a": "from prlhf.deep.c import name\n",
            "b": "",
            "deep/c": "from . import d\nfrom ..e import other\n",
            "deep/d": "",
            "e": "import prlhf.stages.one\n",
            "unused": "",
        }
    )
    assert found(root) == {"stages.one", "a", "b", "deep.c", "deep.d", "e"}


def test_imports_in_functions_count_and_those_for_types_do_not(package):
    root = package(
        {
            "stages/one": (
                "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from prlhf.types import T\n"
                "else:\n    import prlhf.fallback\n"
                "def run():\n    if True:\n        from prlhf.late import f\n"
            ),
            "types": "",
            "fallback": "",
            "late": "",
        }
    )
    assert found(root) == {"stages.one", "fallback", "late"}


def test_a_package_counts_when_its_init_does_something(package):
    root = package(
        {
            "stages/one": "from prlhf.talks.x import f\nfrom prlhf.silent.x import g\n",
            "talks/__init__": "from prlhf.talks.y import h\n",
            "talks/x": "",
            "talks/y": "",
            "silent/__init__": '"""Only words."""\n',
            "silent/x": "",
        }
    )
    assert found(root) == {"stages.one", "talks", "talks.x", "talks.y", "silent.x"}
