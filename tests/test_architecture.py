"""What keeps the package in order: which room imports which, how large it is, one name for a thing.

The limits are not goals. Where one fails, its message says what to do instead of raising it.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter

import pytest

from prlhf.params import Params
from prlhf.params.section import Section
from source_tree import PACKAGE, ROOT, Module, for_type_checking, imported, modules

PAGE = "docs/architecture.md"
HEADING = "## What each room may import"

LINES_OF_A_MODULE = 400
MODULES_WITH_TYPE_CHECKING = 15


@cache
def table() -> dict[str, set[str]]:
    """The rows of the table: room -> the rooms and single modules that it may import."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert HEADING in text, f"{PAGE} has no section {HEADING!r}: this test reads its table"
    section = text.partition(HEADING)[2].partition("\n## ")[0]
    rows = re.findall(r"^\|(.+)\|(.+)\|$", section, re.MULTILINE)[2:]
    every = {room for rooms, _ in rows for room in re.findall(r"`([^`]+)`", rooms)}
    found = {}
    for rooms, allowed in rows:
        names = set(re.findall(r"`([^`]+)`", allowed))
        assert names or allowed.strip() in {"nothing", "everything"}, f"{PAGE}: {allowed}"
        for room in re.findall(r"`([^`]+)`", rooms):
            assert room not in found, f"{PAGE}: two rows for {room}"
            found[room] = every if allowed.strip() == "everything" else names
    return found


def named(module: str) -> str:
    """As the table says it: `prlhf.data.ids` is `data.ids`."""
    return module.removeprefix(PACKAGE).lstrip(".")


def row(module: str) -> str:
    """The row that holds for a module: its own, or that of its room."""
    name = named(module)
    return name if name in table() else name.partition(".")[0]


def allowed(importer: str, target: str) -> bool:
    own, name = named(importer).partition(".")[0], named(target)
    choices = table()[row(importer)]
    if row(importer) == own:
        choices = choices | {own}
    return bool({name, name.partition(".")[0]} & choices)


def imports() -> Iterator[tuple[Module, str, int]]:
    """Who imports what, and in which line."""
    for module in modules().values():
        for target, line in imported(module, types=True).items():
            yield module, target, line


def test_every_room_has_a_row_and_every_row_a_room():
    names = {named(name) for name in modules()}
    packages = {name.rpartition(".")[0] for name in names}
    for room, choices in table().items():
        for name in {room} | choices:
            assert name in names | packages, f"{PAGE}: there is no `{name}`; mend the table"
    missing = {module.room for module in modules().values()} - {""} - set(table())
    assert not missing, f"{PAGE} has no row for {sorted(missing)}: say there what it may import"


def test_rooms_import_what_the_table_allows():
    wrong = [
        f"{module.path}:{line}: {row(module.name)} may not import {target}"
        for module, target, line in imports()
        if module.room and not allowed(module.name, target)
    ]
    assert not wrong, "\n".join(
        [
            f"these imports are not in the table of {PAGE}. Move what is needed to a room that may "
            "be imported, or hand it over as an argument; change the table only when the rooms' "
            "order stays one that can be explained:",
            *wrong,
        ]
    )


def test_rooms_do_not_import_each_other_in_a_circle():
    rooms = defaultdict(set)
    for module, target, _ in imports():
        # Names of files and constants only: it imports nothing, and may be imported by all.
        if named(target) != "stages.paths" and modules()[target].room != module.room:
            rooms[module.room].add(modules()[target].room)
    try:
        TopologicalSorter(rooms).prepare()
    except CycleError as error:
        pytest.fail(
            f"rooms import each other: {' <- '.join(error.args[1])}. Move what both need to the "
            "lower of the two, or to a room below them"
        )


def test_modules_stay_short():
    lines = {str(module.path): len(module.text.splitlines()) for module in modules().values()}
    long = {path: count for path, count in lines.items() if count > LINES_OF_A_MODULE}
    assert not long, (
        f"longer than {LINES_OF_A_MODULE} lines: {long}. Take out a part that can be understood, "
        "and tested, by itself"
    )


def test_few_modules_import_for_type_checking_only():
    found = [str(module.path) for module in modules().values() if for_type_checking(module)]
    assert len(found) <= MODULES_WITH_TYPE_CHECKING, (
        f"{len(found)} modules have `if TYPE_CHECKING:`, at most {MODULES_WITH_TYPE_CHECKING} may. "
        "It is for imports that would be circular, or would slow down `prlhf --help`; import the "
        "rest as usual:\n" + "\n".join(found)
    )


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions() -> Iterator[tuple[Module, Definition]]:
    """The public classes and functions at the top of all modules."""
    for module in modules().values():
        for node in module.tree.body:
            if isinstance(node, Definition) and not node.name.startswith("_"):
                yield module, node


def by_name() -> set[str]:
    """What modules import from other modules to use it without saying where it is from."""
    return {
        alias.name
        for module in modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE)
        for alias in node.names
        if f"{node.module}.{alias.name}" not in modules()
    }


def test_a_name_means_one_thing():
    """Classes always; functions where they are used without their module's name.

    `train.run` and `page.render` say what they are, and every stage has a `run`.
    """
    places = defaultdict(list)
    for module, node in definitions():
        places[node.name].append((named(module.name), isinstance(node, ast.ClassDef)))
    bare = by_name()
    unclear = {
        name: [place for place, _ in found]
        for name, found in places.items()
        if len(found) > 1 and (name in bare or any(is_class for _, is_class in found))
    }
    assert not unclear, "\n".join(
        [
            "defined in several modules. Say in the name what each of them is, use one for all, or "
            "(functions) import the module and call it by its name:",
            *(f"{name}: {', '.join(found)}" for name, found in sorted(unclear.items())),
        ]
    )


def sections() -> dict[str, set[str]]:
    """Each section of params.yaml: class -> keys."""
    assert issubclass(Params, Section)
    found: dict[str, set[str]] = {}
    waiting = list(Section.__subclasses__())
    while waiting:
        section = waiting.pop()
        found[section.__name__] = set(section.model_fields)
        waiting += section.__subclasses__()
    # Its keys are the names of columns, which a row of data has as well.
    del found["ColumnParams"]
    return found


def fields(node: ast.ClassDef) -> set[str]:
    """The fields of a dataclass, a typed dictionary or a named tuple; of other classes none."""
    kinds = " ".join(ast.unparse(each) for each in [*node.decorator_list, *node.bases])
    if not re.search(r"\b(dataclass|TypedDict|NamedTuple)\b", kinds):
        return set()
    return {
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }


def test_no_class_mirrors_a_section_of_the_parameters():
    mirrors = [
        f"{module.path}:{node.lineno}: {node.name} repeats {section}: {', '.join(sorted(own))}"
        for module in modules().values()
        if module.room != "params"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.ClassDef) and len(own := fields(node)) >= 3
        for section, keys in sections().items()
        if own <= keys
    ]
    assert not mirrors, "\n".join(["hand the section over as it is:", *mirrors])
