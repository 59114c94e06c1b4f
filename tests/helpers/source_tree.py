"""The modules of `prlhf` as source text: what each imports, without importing any of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = next(path for path in Path(__file__).resolve().parents if (path / "dvc.yaml").is_file())
PACKAGE = "prlhf"


@dataclass(frozen=True)
class Module:
    """One file of the package.

    Attributes:
        name: Dotted name, `prlhf.data`; that of the package for an `__init__.py`.
        path: The file, relative to `root`.
        root: The directory that holds `src/`.
    """

    name: str
    path: Path
    root: Path = ROOT

    @cached_property
    def text(self) -> str:
        return (self.root / self.path).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, str(self.path))

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but a docstring."""
        return all(
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for node in self.tree.body
        )

    @property
    def room(self) -> str:
        """The package or single module that it belongs to: `data`, `cli`; empty for `prlhf`."""
        return self.name.removeprefix(PACKAGE).lstrip(".").partition(".")[0]


@cache
def modules(root: Path = ROOT) -> dict[str, Module]:
    """All modules by dotted name, in order."""
    found = {}
    for path in sorted((root / "src" / PACKAGE).rglob("*.py")):
        parts = path.relative_to(root / "src").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path.relative_to(root), root)
    return found


def imported(module: Module, *, types: bool = False) -> dict[str, int]:
    """The modules of `prlhf` that a module imports, each with the line where it does.

    Imports inside functions count.

    Args:
        module: Whose imports are wanted.
        types: Whether imports for type checking, which never run, count too.
    """
    known = modules(module.root)
    found: dict[str, int] = {}
    for node in _nodes(module.tree, types=types):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for name in _names(node, module):
            while name not in known and "." in name:  # a function or class of the module
                name = name.rpartition(".")[0]
            if name in known and name not in {PACKAGE, module.name}:
                found.setdefault(name, node.lineno)
    return found


def reached(name: str, root: Path = ROOT) -> set[str]:
    """The modules that run when a module does: itself and all that it imports, directly or not.

    Their packages count where an `__init__.py` does something.
    """
    known = modules(root)
    waiting, found = [name], set[str]()
    while waiting:
        each = waiting.pop()
        if each in known and each not in found:
            found.add(each)
            waiting += [*imported(known[each]), each.rpartition(".")[0]]
    return {each for each in found if not (known[each].is_package and known[each].is_empty)}


def for_type_checking(module: Module) -> bool:
    """Whether it has imports under `if TYPE_CHECKING:`."""
    return any(_checks_types(node) for node in ast.walk(module.tree))


def _names(node: ast.Import | ast.ImportFrom, module: Module) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    source = node.module or ""
    if node.level:
        steps = module.name.split(".")
        above = steps[: len(steps) - node.level + module.is_package]
        source = ".".join([*above, *([source] if source else [])])
    yield from (f"{source}.{alias.name}" for alias in node.names)


def _nodes(tree: ast.AST, *, types: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if _checks_types(node) and not types:
            for other in node.orelse:
                yield other
                yield from _nodes(other, types=types)
            continue
        yield node
        yield from _nodes(node, types=types)


def _checks_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
