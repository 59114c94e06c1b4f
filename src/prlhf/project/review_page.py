"""What a change does, as Markdown: for a comment on a pull request, and for a terminal.

Names and values come from the files of whoever proposes the change. They are shown as code, which
GitHub takes neither for markup nor for a mention.
"""

from collections.abc import Iterable, Sequence

from prlhf.project.compare import HEADLINE, ChangedFile, Changes, Revision, StaleStage, Warned, rank
from prlhf.project.pipeline import WORKSPACE, Value, clip, shown

MAX_LENGTH = 60_000  # of the page without `every_metric`: a comment on GitHub holds 65,536
MAX_ROWS = 60  # of a table or a list; the others are counted
MAX_NAMES = 4  # of a list in a table
MAX_VALUE = 60  # characters of a value or a name
MAX_LINE = 240  # characters of a message


def render(changes: Changes, *, every_metric: bool = False) -> str:
    """The change as Markdown; tables are aligned, so that it can be read as it is, too.

    `every_metric` shows all figures that differ, not the headline's only, and cuts nothing off.
    """
    old, new = _revision(changes.old), _revision(changes.new)
    parts = [
        "### What this change does to the pipeline",
        f"{old} \N{RIGHTWARDS ARROW} {new}: {_sentence(changes)}",
        *map(_warning, changes.warnings),
        _parameters(changes),
        _stages(changes.stages),
        f"Removed stages: {_names(changes.removed, MAX_ROWS)}" if changes.removed else "",
        _files(changes.files),
        _metrics(changes, every_metric),
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    if len(text) > MAX_LENGTH and not every_metric:
        end = text.rindex("\n", 0, MAX_LENGTH)
        text = f"{text[:end]}\n\nCut short: `prlhf params diff --all` shows the rest.\n"
    return text


def _sentence(changes: Changes) -> str:
    what = [_count(len(changes.parameters), "parameter")]
    files = {path for each in changes.files for path in each.files or (each.path,)}
    if files:
        what.append(f"{_count(len(files), 'file')} of code or data")
    changed = f"{' and '.join(what)} changed"
    direct = sum(bool(stage.reasons) for stage in changes.stages)
    if not direct:
        return f"{changed}; no stage becomes stale."
    stale = f"{direct} become{'s' if direct == 1 else ''} stale"
    following = len(changes.stages) - direct
    more = f", {following} more by following them" if following else ""
    return f"{changed}; of {_count(changes.of, 'stage')}, {stale}{more}."


def _warning(warning: Warned) -> str:
    lines = ["> [!WARNING]", f"> {warning.text}"]
    items = []
    for what, names in warning.about.items():
        text = what if warning.kind == "gpu" else code(what, MAX_LINE)
        items.append(f"{_names(names, MAX_ROWS)}: {text}" if names else text)
    return "\n".join([*lines, *(f"> - {item}" for item in _limited(items))])


def _parameters(changes: Changes) -> str:
    rows = []
    for each in changes.parameters:
        values = {side: code(shown(value)) for side, value in each.values.items()}
        sides = [values.get(side, "absent") for side in ("old", "new")]
        rows.append([code(each.key), *sides, _names(each.stages) or "no stage"])
    return _table(["Parameter", code(changes.old.name), code(changes.new.name), "Read by"], rows)


def _stages(stages: Sequence[StaleStage]) -> str:
    rows = []
    for stage in stages:
        how, because = "follows", _names(stage.follows)
        if stage.reasons:
            phrases = [phrase.format(code(name)) for phrase, name in stage.reasons[:MAX_NAMES]]
            how, because = "direct", _and_more(phrases, len(stage.reasons))
        rows.append([code(stage.name), how, because, "yes" if stage.gpu else ""])
    return _table(["Stale stage", "How", "Because of", "GPU"], rows)


def _files(files: Iterable[ChangedFile]) -> str:
    """A line for each kind of change and set of stages."""
    lines: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for file in files:
        inside = _names([each.removeprefix(f"{file.path}/") for each in file.files])
        text = code(file.path) + (f" ({inside})" if inside else "")
        lines.setdefault((file.change, file.kind, file.stages), []).append(text)
    written = [
        f"- {change.capitalize()} {kind}: {_and_more(paths[:8], len(paths))} "
        f"\N{RIGHTWARDS ARROW} {_names(stages, 2 * MAX_NAMES)}"
        for (change, kind, stages), paths in lines.items()
    ]
    return "\n".join(_limited(written))


def _metrics(changes: Changes, every: bool) -> str:
    metrics = [metric for metric in changes.metrics if every or rank(metric.key) < len(HEADLINE)]
    rows = []
    for _, key, old, new, interval in metrics:
        change = ""
        if isinstance(old, int | float) and isinstance(new, int | float):
            change = f"{new - old:+.4g}"
        ends = " to ".join(map(_figure, interval or ()))
        rows.append([code(key), _figure(old), _figure(new), change, ends])
    head = ["Metric", code(changes.old.name), code(changes.new.name), "Change", "Interval"]
    table = _table(head, rows, right=4, limit=len(rows) if every else MAX_ROWS)
    more = len(changes.metrics) - len(metrics)
    note = f"{more} more differ: `prlhf params diff --all` shows them." if more else ""
    return "\n\n".join(part for part in (table, note) if part)


def _figure(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else code(shown(value))


def code(text: str, limit: int = MAX_VALUE) -> str:
    """Any text as Markdown's code, on one line."""
    text = clip(" ".join(text.split()), limit)
    fence = "`"
    while fence in text:
        fence += "`"
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else "(empty)"


def _revision(side: Revision) -> str:
    if side.commit is None:
        return f"the {WORKSPACE}"
    short = side.commit[:7]
    return code(side.name) + ("" if side.name.startswith(short) else f" ({short})")


def _names(names: Sequence[str], limit: int = MAX_NAMES) -> str:
    return _and_more([code(name) for name in names[:limit]], len(names))


def _and_more(parts: Sequence[str], number: int) -> str:
    more = number - len(parts)
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _limited(lines: Sequence[str]) -> list[str]:
    return [*lines[:MAX_ROWS], *_more(len(lines) - MAX_ROWS)]


def _more(number: int) -> list[str]:
    return [f"and {number} more (`--json` has them)"] if number > 0 else []


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _table(head: list[str], rows: list[list[str]], right: int = 0, limit: int = MAX_ROWS) -> str:
    parts = [table(head, rows[:limit], right), *_more(len(rows) - limit)]
    return "\n\n".join(parts) if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    """A table of GitHub's Markdown with aligned columns, the last `right` to the right."""
    # GitHub splits rows at every bar that is not escaped, even within code.
    cells = [
        [cell.replace("\\|", "\\ |").replace("|", "\\|") for cell in row] for row in (head, *rows)
    ]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    left = len(head) - right
    cells.insert(1, ["-" * width for width in widths[:left]])
    cells[1] += ["-" * (width - 1) + ":" for width in widths[left:]]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)][:left]
        padded += [cell.rjust(width) for cell, width in zip(row, widths, strict=True)][left:]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)
