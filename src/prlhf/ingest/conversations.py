"""Prompts and responses that are chat messages, in the forms that people publish them in.

Lists of `{role, content}` or `{from, value}` (ShareGPT), contents in parts, the same written as
JSON or Python text into a cell, and transcripts of `Human:` and `Assistant:` become what the
contract has: a prompt of messages, and a response that is the text of one. A response may come with
its whole dialogue; what stands before it is then the prompt.
"""

import ast
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from prlhf.data.prompts import PromptError, canonical_or_none, chat_message
from prlhf.ingest.files import Records, is_message

Messages = list[dict[str, str]]

FORMS: Final = (
    "messages are texts of system, user and assistant: leave out what is not, or the row; "
    "docs/bring-your-own-feedback.md has the forms that are read"
)
"""What to do about messages in another form."""

_ONE_DIALOGUE: Final = (
    "leave the row out; without a column of prompts, they are taken from the responses' messages"
)
_ONE_RESPONSE: Final = "a row compares two responses: make a row of each pair"

SHAREGPT: Final = {"human": "user", "gpt": "assistant"}
"""Roles of `{from, value}`, where they have other names."""

# What a text must begin with to be looked at: an object, perhaps in a list, or a transcript.
_OPENING: Final = r"""^\s*(?:(?:array\()?\[?\s*\{\s*['"\\]|Human:)"""
# Where it names a message's fields but cannot be read, it is likely one that was damaged.
_LIKE_MESSAGES: Final = re.compile(
    r"""\s*(?:array\()?\[?\s*\{\s*\\?["']{1,2}(?:role|content|from|value)\\?["']{1,2}\s*:"""
)
_SPEAKER: Final = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ ]?")


class _Answer(NamedTuple):
    """A response that came as messages: those before it, and its text."""

    before: Messages
    text: str


def unfolded(records: Records, mapping: Mapping[str, str | None]) -> Records:
    """Records whose prompts are texts or lists of `{role, content}`, and whose responses are texts.

    Values that are neither those nor messages stay as they are. Texts are read as messages where
    they are some from beginning to end. If others only begin so, they are taken as they stand,
    unless half of the column's texts or more seem to be messages.

    Args:
        records: What was read.
        mapping: Our name -> the source's name; see `columns.contract_rows`.

    Raises:
        UserError: Messages are malformed, a response is not the assistant's, or prompt, chosen and
            rejected are not of one dialogue.
    """
    names = {ours: mapping.get(ours) or "" for ours in ("prompt", "chosen", "rejected")}
    here = {ours: records.columns[name] for ours, name in names.items() if name in records.columns}
    notes = list(records.notes)
    found = {
        ours: _read(records, names[ours], column, ours, notes)
        for ours, column in here.items()
        if _holds_messages(column, ours)
    }
    answers = {ours: values for ours, values in found.items() if ours != "prompt"}
    if any(isinstance(each, _Answer) and each.before for row in answers.values() for each in row):
        if "prompt" not in here:
            notes.append(
                f'has no column "{names["prompt"]}": prompts are the messages before the responses'
            )
        elif "prompt" not in found:
            found["prompt"] = _read(records, names["prompt"], here["prompt"], "prompt", notes)
        found["prompt"] = _prompts(records, names, found)
    columns = {
        names[ours]: [each.text if isinstance(each, _Answer) else each for each in values]
        for ours, values in found.items()
    }
    own = [name for name in columns if name not in records.names]
    return replace(
        records,
        names=records.names + own,
        columns=records.columns | columns,
        notes=tuple(notes),
    )


def _holds_messages(column: list[Any] | pa.ChunkedArray, ours: str) -> bool:
    """Whether there may be something in a column to be read as messages.

    Prompts that are lists of `{role, content}` are in the contract's own form, if Arrow has them.
    """
    if isinstance(column, list):
        return any(
            re.match(_OPENING, value) if isinstance(value, str) else isinstance(value, list | dict)
            for value in column
        )
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _holds_messages(column.cast(kind.value_type), ours)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return bool(pc.any(pc.match_substring_regex(column, _OPENING), min_count=0).as_py())
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return pa.types.is_struct(kind)
    turn = kind.value_type
    if ours != "prompt" or not pa.types.is_struct(turn):
        return ours != "prompt"
    own = turn.get_field_index("role") >= 0 and turn.get_field_index("content") >= 0
    return not own or pa.types.is_list(turn.field("content").type)


def _read(
    records: Records,
    name: str,
    column: list[Any] | pa.ChunkedArray,
    ours: str,
    notes: list[str],
) -> list[Any]:
    """A column's values with messages read: lists of them in prompts, `_Answer` in responses."""
    convert = _asked if ours == "prompt" else _answered
    values = column if isinstance(column, list) else column.to_pylist()
    known: dict[str, Any] = {}  # of texts that open like messages: what they are, or their fault
    texts, read, faulty = 0, [], []
    found: list[Any] = []
    for index, value in enumerate(values):
        result = value
        if isinstance(value, str):
            texts += bool(value.strip())
            if re.match(_OPENING, value):
                if value not in known:
                    known[value] = _of_text(value, convert)
                result = known[value]
                if isinstance(result, PromptError):
                    faulty.append(index)
                    result = value
                elif not isinstance(result, str):
                    read.append(index)
        elif value == [] and ours != "prompt":
            result = None
        elif value is not None:
            try:
                turns = _turns(value)
                result = value if turns is None else convert(turns)
            except PromptError as error:
                raise records.wrong(index, name, str(error), FORMS) from error
            if isinstance(result, list) and ours != "prompt":
                raise records.wrong(index, name, "expected text, found a list", _ONE_RESPONSE)
        found.append(result)
    if read:
        said = f"{len(read)} of {texts} texts are messages, and are read as such"
        notes.append(f'column "{name}": {said} (the first: {records.where(read[0])})')
    if faulty and 2 * (len(read) + len(faulty)) >= texts:
        raise records.wrong(faulty[0], name, str(known[values[faulty[0]]]), FORMS)
    if faulty:
        said = f"{len(faulty)} of {texts} texts seem to be messages, but are taken as they stand"
        notes.append(f'column "{name}": {said} (the first: {records.where(faulty[0])})')
    return found


def _prompts(records: Records, names: Mapping[str, str], found: Mapping[str, Any]) -> list[Any]:
    """The prompts, taken from dialogues that responses came with; they must agree."""
    prompts = list(found.get("prompt") or [None] * len(records.numbers))
    origins = ["prompt"] * len(prompts)
    for ours in ("chosen", "rejected"):
        for index, answer in enumerate(found.get(ours, ())):
            if isinstance(answer, _Answer) and answer.before:
                agreed = _agreed(prompts[index], answer.before)
                if agreed is None:
                    origin = names[origins[index]]
                    problem = f'its messages before the last are not those of column "{origin}"'
                    raise records.wrong(index, names[ours], problem, _ONE_DIALOGUE)
                if agreed is not prompts[index]:
                    prompts[index], origins[index] = agreed, ours
    return prompts


def _agreed(prompt: Any, before: Messages) -> Any:
    """The prompt, if it is what stands before a response; None if it is not.

    White space around messages does not count, nor that one has a system message and the other not.
    """
    if prompt is None or (isinstance(prompt, str) and not prompt.strip()):
        return before
    if not isinstance(prompt, str | list):
        return prompt  # for others to refuse
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    one, other = (
        [(each["role"], each["content"].strip()) for each in turns if each["content"].strip()]
        for turns in (asked, before)
    )
    if one == other:
        return prompt
    spoken, heard = ([each for each in turns if each[0] != "system"] for turns in (one, other))
    if spoken == heard and (spoken == one or heard == other):
        return prompt if len(one) > len(other) else before
    return None


# ---------------------------------------------------------------- one value


def _asked(turns: Messages) -> Messages:
    """The messages of a prompt, without an empty one of the assistant's that is yet to come."""
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns = turns[:-1]
    canonical_or_none(turns)
    return turns


def _answered(turns: Messages) -> _Answer:
    *before, last = turns
    if last["role"] != "assistant":
        raise PromptError(f"the last message is the {last['role']}'s, it must be the assistant's")
    if before and before[-1]["role"] != "user":
        kind = before[-1]["role"]
        raise PromptError(f"the message before the last is the {kind}'s, it must be the user's")
    return _Answer(before, last["content"])


def _of_text(text: str, convert: Callable[[Messages], Any]) -> Any:
    """What a text says as messages; the text itself if it is none, the error if it is damaged."""
    try:
        turns = _transcript(text)
        if turns is None:
            value = _literal(text)
            made = is_message(value) or (isinstance(value, list) and any(map(is_message, value)))
            turns = _turns(value) if made else None
        if turns is None and _LIKE_MESSAGES.match(text) and value is None:
            raise PromptError(
                "begins like messages, but is no whole JSON or Python text (cut off? printed?)"
            )
        return text if turns is None else convert(turns)
    except PromptError as error:
        return error


def _transcript(text: str) -> Messages | None:
    """The turns of a text of `Human:` and `Assistant:`, each behind an empty line."""
    opening = text.lstrip()
    if not opening.startswith("Human:"):
        return None
    if "\n\nAssistant:" not in text and not text.startswith("\n\n"):
        return None
    _, *pieces = _SPEAKER.split(text)
    roles = ["user" if speaker == "Human" else "assistant" for speaker in pieces[::2]]
    if any(one == other for one, other in pairwise(roles)):
        raise PromptError("Human and Assistant do not take turns")
    return [{"role": role, "content": said} for role, said in zip(roles, pieces[1::2], strict=True)]


def _literal(text: str) -> Any:
    """The value of a text of JSON or of a Python literal; None if it is neither."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about escapes that Python does not know
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _turns(value: Any) -> Messages | None:
    """The messages of a list, or of one message by itself; None if it is another value.

    Raises:
        PromptError: Some are messages, but one is malformed.
    """
    turns = [value] if is_message(value) else value
    if not isinstance(turns, list) or not any(isinstance(turn, dict) for turn in turns):
        return None
    return [_turn(turn, number) for number, turn in enumerate(turns, 1)]


def _turn(value: Any, number: int) -> dict[str, str]:
    if isinstance(value, dict):
        if value.get("role") is None and "from" in value:
            role = value["from"]
            known = SHAREGPT.get(role, role) if isinstance(role, str) else role
            value = {"role": known, "content": value.get("value")}
        if isinstance(value.get("content"), list):
            value = value | {"content": _joined(value["content"], number)}
    return chat_message(value, number)


def _joined(parts: list[Any], number: int) -> str:
    """The text of a message whose content is in parts."""
    texts: list[Any] = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        kinds = [part.get("type") for part in parts if isinstance(part, dict)]
        kind = next((each for each in kinds if each != "text"), None)
        raise PromptError(
            f"message {number} has a part that is no text{f': {kind!s:.40}' if kind else ''}"
        )
    return "".join(texts)
