"""Part `params`: damaged copies of params.yaml, each of which is read, or refused line by line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from benchmarks.chaos.damage import BYTES
from benchmarks.chaos.trial import REFUSED, USED, Fault, Part, Trial, quiet, refusal
from prlhf.infra.errors import UserError
from prlhf.params import load
from prlhf.stages.paths import PARAMETERS

ROOT: Final = Path(__file__).resolve().parents[2]
MEMORY: Final = 4 * 2**30
PATIENCE: Final = 120.0
MOST: Final = 400
"""Lines for one file, at most: each key that is wrong may have one."""

VALUES: Final = (
    "", "~", "null", "true", "yes", "no", "on", "0", "-1", "1", "-0.0", "1.5", "1e999", ".nan",
    ".inf", "-.inf", "1_000", "0x1F", "0o17", "017", "12:30:45", "2024-01-01", "9" * 400, "1e400",
    "'1'", '""', '" "', "auto", "[]", "{}", "[a, a]", "[[]]", "{a: {b: c}}", "[1, two, 3.0, null]",
    "!!binary aGVsbG8=", "!!python/object/apply:os.system ['true']", "!!set {a, b}", "!custom x",
    "!!omap [a: 1]", "!!timestamp 2001-12-14", "!!float 1", "!!int '7'", "!!str 7", "&a [*a]",
    "*nowhere", "&x 1", "'it''s'", '"\\ud800"', '"\\0"', '"\\e[31m"', '"a\\nb"', "|\n    block",
    "${HOME}", "../..", "/", "/dev/zero", "/dev/null", "a/b", "a/b/c", "\u202e", "\u00e9", "\u0661",
    "=1+1", "<script>", "x" * 100_000, "[" * 2000 + "]" * 2000, "{? a : b}", "? x", "- 1", "%", "@",
    "`", "a: b", "a : b: c", "#", "1e-320", "5e-324", "1e308", str(2**63), str(2**64),
    "-" + "9" * 30,
)  # fmt: skip
"""What is put in a value's place."""

LINES: Final = (
    "seed: 8", "seed : 7", "more: 1", "? [a, b]\n: 1", "1: 2", "null: 3", "true: 4",
    "<<: {seed: 3}", "<<: *nowhere", "---", "...", "--- \nseed: 7", "%YAML 1.1\n---", "\tkey: 1",
    "  stray: 1", "key", ": 1", "- a", "x" * 5000 + ": 1", "\ufeff", "\0", "\x1b[2J: 1",
    '"\\e[2J": 1', "a: &a [x, *a]", "b: &b {c: *b}", "train.alpha: 0.3", "data: null",
    "methods: {}", "'../x': 1", "model: smollm2", "!x", "\r", "\u2028", "}", "]", '"', "'", "|",
    ">", "&", "*", "{", "[", "#" * 3000, "? ", "? ? ? a", "a: b: c", "2024-01-01: 1", ".nan: 1",
)  # fmt: skip
"""What is put between lines."""


@dataclass(frozen=True)
class _Key:
    """A line that gives a key a value: its number from 0, and the two with what is before them."""

    line: int
    head: str
    value: str


def attempt(trial: Trial, text: str) -> tuple[str, str]:
    """Read one damaged file, as every command does first."""
    content, about = damaged(trial.random, text)
    trial.tries(about)
    PARAMETERS.write_bytes(content)
    try:
        params = load()
    except UserError as error:
        quiet(trial.said(), "error: ")
        line = refusal(error, most=MOST)
        if not line.startswith(str(PARAMETERS)):
            raise Fault("no place", line) from error
        return REFUSED, line
    quiet(trial.said(), "error: ")
    _same(params.model_dump(by_alias=True), content)
    return USED, ""


def damaged(random: Random, text: str) -> tuple[bytes, str]:
    """A file with one to three faults, and what they are, in words."""
    about = []
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        mutations = RARE if random.random() < 0.02 else MUTATIONS
        name = random.choice(list(mutations))
        about.append(name)
        text = mutations[name](random, text)
    content = text.encode("utf-8", "surrogatepass")
    if random.random() < 0.15:
        name = random.choice(list(BYTES))
        about.append(name)
        content = BYTES[name](random, content)
    return content, ", ".join(about)


def _same(read: Mapping[str, Any], content: bytes) -> None:
    """Check that what was read is what another reader finds in the file.

    Raises:
        Fault: A value differs, or the file should not have been read at all.
    """
    yaml = YAML(typ="safe", pure=True)
    try:
        expected = yaml.load(content.decode("utf-8-sig"))
    except (YAMLError, ValueError) as error:
        raise Fault("silent", f"is read, though it is no YAML: {error}".splitlines()[0]) from error
    there, here = dict(_leaves(expected)), dict(_leaves(read))
    for key in there.keys() | here.keys():
        if key not in there or key not in here or not _equal(there[key], here[key]):
            raise Fault("another value", f"{'.'.join(key)}: {there.get(key)} is {here.get(key)}")


def _leaves(node: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from _leaves(value, (*key, str(name)))
    else:
        yield key, list(node) if isinstance(node, list | tuple) else node


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return bool(one == other)


# -- mutations -------------------------------------------------------------------------------------


def _keys(text: str) -> list[_Key]:
    found = []
    for number, line in enumerate(text.split("\n")):
        head, colon, rest = line.partition(":")
        if colon and head.strip() and not head.lstrip().startswith("#"):
            found.append(_Key(number, head + colon, rest))
    return found


def _value(random: Random, text: str) -> str:
    lines = text.split("\n")
    key = random.choice(_keys(text) or [_Key(0, "seed:", "")])
    lines[key.line] = f"{key.head} {random.choice(VALUES)}"
    return "\n".join(lines)


def _removed(random: Random, text: str) -> str:
    lines = text.split("\n")
    start = random.randrange(len(lines))
    del lines[start : start + random.choice((1, 1, 1, 5, 30))]
    return "\n".join(lines)


def _added(random: Random, text: str) -> str:
    lines = text.split("\n")
    indent = random.choice(("", "", "  ", "    ", "\t"))
    at = random.choice((0, len(lines), random.randrange(len(lines) + 1)))
    lines.insert(at, indent + random.choice(LINES))
    return "\n".join(lines)


def _doubled(random: Random, text: str) -> str:
    lines = text.split("\n")
    start = random.randrange(len(lines))
    lines[start:start] = lines[start : start + random.choice((1, 3, 20))]
    return "\n".join(lines)


def _misspelt(random: Random, text: str) -> str:
    lines = text.split("\n")
    key = random.choice(_keys(text) or [_Key(0, "seed:", " 7")])
    name = key.head.strip(" :")
    if name:
        at = random.randrange(len(name))
        new = random.choice(
            (name[:at] + name[at + 1 :], name.upper(), f"{name} ", f"{name}\u200b", "")
        )
        lines[key.line] = key.head.replace(name, new) + key.value
    return "\n".join(lines)


def _indented(random: Random, text: str) -> str:
    lines = text.split("\n")
    at = random.randrange(len(lines))
    lines[at] = random.choice((" ", "  ", "\t", "")) + random.choice(
        (lines[at], lines[at].lstrip())
    )
    return "\n".join(lines)


def _uncommented(random: Random, text: str) -> str:
    return text.replace("#", random.choice(("", "//", ";", "-")), random.randint(1, 40))


def _deep(random: Random, text: str) -> str:
    depth = random.choice((50, 1000, 5000))
    return f"{text}\ndeep: " + "{a: " * depth + "1" + "}" * depth + "\n"


def _laughs(random: Random, text: str) -> str:
    lines = ["lol0: &lol0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"lol{n}: &lol{n} [{', '.join([f'*lol{n - 1}'] * 9)}]" for n in range(1, 9)]
    return text + "\n" + "\n".join(lines) + "\n"


def _ends(random: Random, text: str) -> str:
    return text.replace("\n", random.choice(("\r\n", "\r", "\n\n", "\u2028", "\x85")))


def _flow(random: Random, text: str) -> str:
    """The same content, written in another style."""
    document = YAML(typ="safe", pure=True).load(text)
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = random.choice((True, False))
    stream = StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _safely(mutation: Callable[[Random, str], str]) -> Callable[[Random, str], str]:
    def mutate(random: Random, text: str) -> str:
        try:
            return mutation(random, text)
        except (YAMLError, ValueError, RecursionError):  # damaged before
            return text

    return mutate


MUTATIONS: Final[Mapping[str, Callable[[Random, str], str]]] = {
    "a value": _value,
    "a value ": _value,
    "a value  ": _value,
    "lines removed": _removed,
    "a line added": _added,
    "a line added ": _added,
    "lines doubled": _doubled,
    "a key misspelt": _misspelt,
    "an indent": _indented,
    "comments opened": _uncommented,
    "other line ends": _ends,
    "another style": _safely(_flow),
}
RARE: Final[Mapping[str, Callable[[Random, str], str]]] = {
    "deeply nested": _deep,
    "a billion laughs": _laughs,
}
"""Those that may cost much time."""


def setup(_: Path) -> str:
    """The project's own file."""
    return (ROOT / PARAMETERS).read_text(encoding="utf-8")


PARAMS: Final = Part("params", "Damaged params.yaml", 1_000, attempt, PATIENCE, MEMORY, setup)
