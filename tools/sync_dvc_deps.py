"""Keep the code dependencies in dvc.yaml equal to what each stage imports.

    python tools/sync_dvc_deps.py          rewrite the lists in dvc.yaml
    python tools/sync_dvc_deps.py --check  only say what differs

A stage depends on the modules of the package that its stage module imports, directly or not and
also inside functions, and on the data files (templates) that those modules name. Imports for type
checking are not run and do not count; neither do `__init__.py` files that hold a docstring only.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

from prlhf.stage_list import STAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "prlhf"
# The package's own __init__ looks its version up, on which no figure depends.
NO_DEPENDENCY = {f"src/{PACKAGE}/__init__.py"}


def code_dependencies(module: str, root: Path = ROOT) -> list[str]:
    """The files under src/ that `module` (dotted name) runs, itself included, sorted."""
    data_files = {
        path.name: path
        for path in (root / "src" / PACKAGE).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"} and path.name != "py.typed"
    }
    waiting = [module]
    modules: set[str] = set()
    files: set[Path] = set()
    while waiting:
        name = waiting.pop()
        path = _file_of(name, root)
        if path is None or name in modules:
            continue
        modules.add(name)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        if path.name == "__init__.py" and not _does_something(tree):
            continue
        files.add(path)
        waiting += [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)]
        for node in _running(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                waiting += _imported(node, name, is_package=path.name == "__init__.py")
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                named = data_files.get(node.value.rpartition("/")[2])
                files |= _with_parts(named, data_files) if named else set()
    return sorted({path.relative_to(root).as_posix() for path in files} - NO_DEPENDENCY)


def is_code(dependency: str) -> bool:
    return dependency.startswith("src/")


def differences(text: str) -> list[str]:
    """What the code dependencies in the text of dvc.yaml lack or have too many, in words."""
    stages = YAML(typ="safe").load(text)["stages"]
    found = []
    for stage in STAGES:
        wanted = set(code_dependencies(f"{PACKAGE}.stages.{stage.module}"))
        declared = {dep for dep in stages[stage.name].get("deps", []) if is_code(dep)}
        found += [f"{stage.name}: add {path}" for path in sorted(wanted - declared)]
        found += [f"{stage.name}: remove {path}" for path in sorted(declared - wanted)]
    return found


def synced(text: str) -> str:
    """The text of dvc.yaml with its code dependencies brought up to date."""
    yaml = YAML(typ="rt")
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 100
    document = yaml.load(text)
    for stage in STAGES:
        deps = document["stages"][stage.name]["deps"]
        wanted = code_dependencies(f"{PACKAGE}.stages.{stage.module}")
        for position in reversed(range(len(deps))):
            if is_code(deps[position]) and deps[position] not in wanted:
                del deps[position]
        for path in wanted:
            if path not in deps:
                deps.append(path)
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _file_of(name: str, root: Path) -> Path | None:
    base = root / "src" / Path(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def _does_something(tree: ast.Module) -> bool:
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree.body
    )


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for other in node.orelse:
                yield other
                yield from _running(other)
            continue
        yield node
        yield from _running(node)


def _imported(node: ast.Import | ast.ImportFrom, module: str, *, is_package: bool) -> list[str]:
    """Dotted names that an import statement may load; names that are no modules do no harm."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    source = node.module or ""
    if node.level:
        steps = module.split(".")
        package = steps[: len(steps) - node.level + is_package]
        source = ".".join([*package, *([source] if source else [])])
    return [source, *(f"{source}.{alias.name}" for alias in node.names)]


def _with_parts(file: Path, data_files: dict[str, Path]) -> set[Path]:
    """A template and those that it names in turn."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            text = path.read_text(encoding="utf-8", errors="ignore")
            waiting += [other for name, other in data_files.items() if name in text]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    arguments = parser.parse_args()
    path = ROOT / "dvc.yaml"
    text = path.read_text(encoding="utf-8")
    found = differences(text)
    for line in found:
        print(line)
    if found and not arguments.check:
        path.write_text(synced(text), encoding="utf-8")
    return int(bool(found) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
