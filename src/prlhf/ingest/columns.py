"""From a source's own columns to the contract's: names, types, canonical prompts."""

import contextlib
import datetime
import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from prlhf.data import ROW_COLUMNS, SPLIT_COLUMNS, SPLITS
from prlhf.data.prompts import (
    UNENCODABLE,
    PromptError,
    canonical_or_none,
    describe,
    encodable,
    message_prompts,
    text_prompts,
)
from prlhf.data.users import EXACT, id_text, lost_digits
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.ingest.conversations import FORMS, unfolded
from prlhf.ingest.digits import first_inexact, first_rounded
from prlhf.ingest.files import Records

_FLOAT_ID = re.compile(r"-?\d+\.0")
# What Arrow and Python make the same number of, and most of what is written as one.
_NUMBER = r"^-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?$"

MILLISECONDS: Final = 1e11
"""Times given as numbers from here on (in seconds, the year 5138) are in milliseconds."""


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        rows: Every row, in the form of `data.ROW_COLUMNS`.
        name: What to call the data set.
        task: The built-in task whose oracle knows what each user wants; None for other data.
    """

    rows: pd.DataFrame
    name: str
    task: str | None = None


def contract_rows(records: Records, mapping: Mapping[str, str | None], source: str) -> pd.DataFrame:
    """Records in the contract's form, one row each, in their order.

    Missing values stay missing, and a prompt without content becomes missing: the stage `validate`
    decides which rows are usable. Only what cannot be understood is an error. Numbers in `user_id`,
    `group` and `unit` become text, whole numbers without a fraction (3, not 3.0).

    Args:
        records: What was read.
        mapping: Our name -> the source's name, None for a column that the source does not have.
        source: The rows' `source` value.

    Raises:
        UserError: A mapped column is missing (the message names the nearest there is), or a value
            has the wrong type (the message names its place).
    """
    records = unfolded(records, mapping)
    for note in records.notes:
        say(f"{records.place}: {note}")
    _require_columns(records, mapping)
    converters: dict[str, Callable[[Records, str], pa.Array | pa.ChunkedArray]] = {
        "user_id": _labels,
        "prompt": _prompts,
        "chosen": _texts,
        "rejected": _texts,
        "user_text": _texts,
        "weight": _weights,
        "group": _labels,
        "side": _sides,
        "unit": _labels,
        "time": _times,
    }
    arrays: dict[str, Any] = {
        "row": pa.array(records.numbers, pa.int64()),
        "source": pa.repeat(pa.scalar(source, pa.string()), len(records.numbers)),
    }
    for name, convert in converters.items():
        if (theirs := mapping.get(name)) is not None:
            arrays[name] = _in_one_piece(convert(records, theirs))
    return typed_rows(pa.table(arrays).to_pandas())


def typed_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with all columns of the contract, in its order and with its types.

    Columns that are not there are filled: weight with 1, the others with missing values. Those of
    `data.SPLIT_COLUMNS` are kept if there are any.
    """
    missing = [name for name in ROW_COLUMNS if name not in frame]
    filled: dict[str, Any] = {name: 1.0 if name == "weight" else pd.NA for name in missing}
    texts = ("source", "user_id", "prompt", "chosen", "rejected", "user_text", "group")
    own = [name for name in SPLIT_COLUMNS if name in frame]
    types = dict.fromkeys((*texts, *own), "str")
    types |= {"row": "int64", "weight": "float64", "unseen": "boolean"}
    if "time" in own:
        types["time"] = "float64"
    return frame.assign(**filled)[[*ROW_COLUMNS, *own]].astype(types)


def _in_one_piece(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array, so that equal tables become equal files however they were read."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    # Large: over 2 GB of text do not fit one array of the common kind.
    column = column.cast(pa.large_string()) if _is_text(column.type) else column
    return column.combine_chunks()


def _require_columns(records: Records, mapping: Mapping[str, str | None]) -> None:
    for ours, theirs in mapping.items():
        if theirs is None or theirs in records.names:
            continue
        # A header may be a row of long texts.
        names = [name[:40] for name in records.names[:40]]
        folded = {name.casefold(): name for name in reversed(names)}
        near = difflib.get_close_matches(theirs.casefold(), folded, n=1, cutoff=0.5)
        hint = f'did you mean "{folded[near[0]]}"? ' if near else ""
        raise UserError(
            f'no column "{theirs}"; it has {", ".join(names) or "none"}',
            where=records.place,
            fix=f"{hint}set data.columns.{ours}",
        )


def _wrong_column(records: Records, name: str, kind: object, expected: str) -> UserError:
    return UserError(f'column "{name}": expected {expected}, found {kind}', where=records.place)


def _decoded(records: Records, name: str) -> list[Any] | pa.ChunkedArray:
    """A column, freed of dictionary encoding."""
    column = records.columns[name]
    if not isinstance(column, list) and pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    return column


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    texts = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return any(is_one(kind) for is_one in texts)


def _texts(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    column = _decoded(records, name)
    if isinstance(column, list):
        return _text_array(records, name, column)
    if not _is_text(column.type):
        raise _wrong_column(records, name, column.type, "text")
    return column.cast(pa.string())


def _text_array(records: Records, name: str, values: list[Any]) -> pa.Array | pa.ChunkedArray:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowTypeError, UnicodeEncodeError):
        for index, value in enumerate(values):
            if value is not None and not isinstance(value, str):
                problem = f"expected text, found {describe(value)}"
                raise records.wrong(index, name, problem) from None
            if value is not None and not encodable(value):
                raise records.wrong(index, name, UNENCODABLE) from None
        raise


def _labels(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    """Text or whole numbers, as text."""
    column = _decoded(records, name)
    if isinstance(column, list):
        if records.typed:
            column = [_label(records, index, name, value) for index, value in enumerate(column)]
        texts = _text_array(records, name, column)
    else:
        texts = _label_column(records, name, column)
    if (index := first_rounded(texts)) is not None:
        raise _lost_digits(records, index, name, texts[index].as_py())
    return texts if records.typed else _untyped_labels(texts)


def _lost_digits(records: Records, index: int, name: str, found: str) -> UserError:
    fix = "export the column as text; if it is a name, put a letter in front"
    problem = f'column "{name}": {lost_digits(found)}'
    return UserError(problem, where=records.where(index), fix=fix)


def _untyped_labels(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Whole numbers that went through a float column, as pandas writes them beside gaps.

    If all have a fraction of zero, they lose it.
    """
    # Python knows other scripts' digits: what is left is checked up to the first that does not fit.
    others = column.filter(pc.invert(pc.match_substring_regex(column, r"^-?[0-9]+\.0$")))
    if all(_FLOAT_ID.fullmatch(value.as_py()) for value in others):
        return pc.utf8_slice_codeunits(column, 0, -2)
    return column


def _label(records: Records, index: int, name: str, value: object) -> str | None:
    if isinstance(value, float) and abs(value) >= EXACT:
        raise _lost_digits(records, index, name, repr(value))
    try:
        return None if value is None else id_text(value)
    except ValueError as error:
        raise records.wrong(index, name, str(error)) from error


def _label_column(records: Records, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if _is_text(column.type) or pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if not pa.types.is_floating(column.type):
        raise _wrong_column(records, name, column.type, "text or whole numbers")
    given = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    if (index := first_inexact(given)) is not None:
        raise _lost_digits(records, index, name, repr(given[index].as_py()))
    try:
        return given.cast(pa.int64()).cast(pa.string())
    except pa.ArrowInvalid as error:
        found = "numbers with a fraction"
        raise _wrong_column(records, name, found, "text or whole numbers") from error


def _weights(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    column = _decoded(records, name)
    if not isinstance(column, list) and not records.typed:
        if pc.all(pc.match_substring_regex(column, _NUMBER), min_count=0).as_py():
            with contextlib.suppress(pa.ArrowInvalid):
                return column.cast(pa.float64())
        column = column.to_pylist()  # Arrow may read a number differently
    if isinstance(column, list):
        weights = [_weight(records, index, name, value) for index, value in enumerate(column)]
        return pa.array(weights, pa.float64())
    kind = column.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise _wrong_column(records, name, kind, "numbers")
    return column.cast(pa.float64(), safe=False)


def _weight(records: Records, index: int, name: str, value: object) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number or (isinstance(value, str) and not records.typed):
        # ValueError: no number. OverflowError: more digits than a float can hold.
        with contextlib.suppress(ValueError, OverflowError):
            return float(cast("float | str", value))
    raise records.wrong(index, name, f"expected a number, found {describe(value)}")


def _sides(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    sides = _texts(records, name)
    known = pc.is_in(sides, pa.array(SPLITS))
    if not pc.all(known, min_count=0).as_py():
        index = pc.index(known, False).as_py()
        problem = f"expected {', '.join(SPLITS[:-1])} or {SPLITS[-1]}, found "
        raise records.wrong(index, name, problem + describe(sides[index].as_py()))
    return sides


def _times(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    """Seconds since 1970 of ISO 8601 texts, numbers, and a table's own times."""
    column = _decoded(records, name)
    if not isinstance(column, list):
        kind = column.type
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
            return pc.divide(micros.cast(pa.float64()), 1e6)
        if not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise _wrong_column(records, name, kind, "times")
        column = column.to_pylist()
    times = [_time(records, index, name, value) for index, value in enumerate(column)]
    return pa.array(times, pa.float64())


def _time(records: Records, index: int, name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            moment = datetime.datetime.fromisoformat(value.strip())
            zone = moment.tzinfo or datetime.UTC
            return moment.replace(tzinfo=zone).timestamp()
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            number = float(value)
            if math.isfinite(number):
                return number / 1000 if abs(number) >= MILLISECONDS else number
    problem = f"expected a time (ISO 8601, or a number since 1970), found {describe(value)}"
    raise records.wrong(index, name, problem)


def _prompts(records: Records, name: str) -> pa.Array | pa.ChunkedArray:
    column = _decoded(records, name)
    if not isinstance(column, list):
        if _is_text(column.type):
            return text_prompts(column)
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise _wrong_column(records, name, column.type, "text or lists of messages")
        prompts = message_prompts(column)
        if prompts is not None:
            return prompts
        column = column.to_pylist()
    known: dict[str, str | None] = {}
    found: list[str | None] = []
    for index, value in enumerate(column):
        if isinstance(value, str) and value in known:
            found.append(known[value])
            continue
        try:
            prompt = None if value is None else canonical_or_none(value)
        except PromptError as error:
            raise records.wrong(index, name, str(error), FORMS) from error
        if isinstance(value, str):
            known[value] = prompt
        found.append(prompt)
    return pa.array(found, pa.string())
