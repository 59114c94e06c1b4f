"""What a model's chat template and its tokenizer agree on, read off the template's own rendering.

What ends an answer is the model's business and not ours: some chat templates close a turn with the
tokenizer's end-of-sequence token, many with a token of their own, a few in words, and generation
may stop at several. The `base_model` stage finds it out once, and keeps it beside the model.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Final

from transformers import PreTrainedTokenizerBase

from prlhf.infra.errors import UserError
from prlhf.infra.io import read_json
from prlhf.models.chat import (
    ChatTokenizer,
    Conventions,
    RefusedPromptError,
    any_of,
    apply_template,
    as_turn,
    is_mark,
)

DATE: Final = "2025-01-01"
"""The day that templates print for a model directory that nobody gave one."""

ASKED, ANSWERED, ASKED_AGAIN = "quoxelbrin", "dwipfazz", "vontrubickle"
"""Words that stand for turns; no template has them, and their lengths differ."""

_CLOCK: Final = re.compile(r"""strftime_now\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")
_ANY_CLOCK: Final = re.compile(r"strftime_now(?!\s+is\b)")


def find_conventions(
    tokenizer: PreTrainedTokenizerBase,
    *,
    stops: Collection[int] = (),
    date: str = DATE,
    where: str | Path = "model.name",
    fix: str | None = None,
) -> Conventions:
    """Find the marks of a tokenizer's chat template, and try it.

    The template renders a question, an answer and another question. The end mark of an answer is
    the first added token behind it, or the words that stand there; without either, the tokenizer's
    end-of-sequence token. Where nothing marks an answer's end, the mark that opens the user's next
    turn stops generation.

    Args:
        tokenizer: a model's. If its template prints today's date, it prints `date` from now on.
        stops: tokens that end its answers by its own settings (`declared_stops`).
        date: what the template is to print for today's date, `YYYY-MM-DD`.
        where, fix: what an error names, and advises.

    Raises:
        UserError: the template cannot be used: it refuses a plain question, prints it never or more
            than once, makes it something else, lets words pass for marks, or has a date that cannot
            be fixed; or nothing ends an answer.
    """
    clock, opening, turns = None, "", Turns()
    if tokenizer.chat_template:
        try:
            clock = date if _stop_clock(tokenizer, date) else None
            opening = _opening(tokenizer)
        except UserError as error:
            raise UserError(error.problem, where=where, fix=fix) from error
        turns = _find_turns(tokenizer)
    end = turns.end or tokenizer.eos_token
    if not end:
        raise UserError("the tokenizer has no end-of-sequence token", where=where)
    ends = {end, turns.opener, tokenizer.eos_token} - {None, ""}
    closing = int(tokenizer.convert_tokens_to_ids(end))
    found = Conventions(
        opening=opening,
        end=turns.words + end,
        closing=(closing,),
        stops=tuple(sorted({*stops, *tokenizer.convert_tokens_to_ids(list(ends))})),
        stop_texts=(turns.stop_words,) if turns.stop_words else (),
        marks=turns.marks,
        date=clock,
    )
    chat = ChatTokenizer(tokenizer, found)
    if not _keeps_words(chat):
        raise UserError("lets words of users pass for its own marks", where=where, fix=fix)
    return replace(found, closing=(*chat.text(turns.words), closing)) if turns.words else found


def chat_tokenizer(tokenizer: PreTrainedTokenizerBase) -> ChatTokenizer:
    """A tokenizer with conventions that nobody recorded."""
    return ChatTokenizer(tokenizer, find_conventions(tokenizer))


def declared_stops(directory: Path, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end answers by a model's `generation_config.json`, or else `config.json`.

    Only marks count: a configuration without one often keeps a default, which is another
    tokenizer's mark and an ordinary word of this one.

    Raises:
        UserError: a file is damaged.
    """
    for name in ("generation_config.json", "config.json"):
        if (directory / name).is_file():
            settings = read_json(directory / name)
            given = settings.get("eos_token_id") if isinstance(settings, dict) else None
            found = given if isinstance(given, list) else [given]
            marks = tokenizer.added_tokens_decoder
            return {token for token in found if isinstance(token, int) and token in marks}
    return set()


def _stop_clock(tokenizer: PreTrainedTokenizerBase, date: str) -> bool:
    """Let the template print this day for today's date; whether it prints any."""
    day = datetime.fromisoformat(date)
    templates = tokenizer.chat_template
    named = templates if isinstance(templates, dict) else {"default": templates}
    fixed = {
        name: _CLOCK.sub(lambda call: repr(day.strftime(call[1] or call[2] or "")), template)
        for name, template in named.items()
    }
    if any(map(_ANY_CLOCK.search, fixed.values())):
        raise UserError("prints today's date in a format of its own making: it cannot be fixed")
    tokenizer.chat_template = fixed if isinstance(templates, dict) else fixed["default"]
    return fixed != named


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What stands behind a question; checks that its words stand in the prompt once."""
    one, other = (
        str(
            apply_template(
                tokenizer, [as_turn("user", words)], tokenize=False, add_generation_prompt=True
            )
        )
        for words in (ASKED, ANSWERED)
    )
    if ASKED not in one:
        raise UserError("leaves the prompt out")
    if one.count(ASKED) > 1:
        raise UserError(f"prints the prompt {one.count(ASKED)} times")
    if one.replace(ASKED, ANSWERED) != other:
        raise UserError("prints other marks for another prompt")
    return one.partition(ASKED)[2]


@dataclass(frozen=True)
class Turns:
    """What a chat template prints around turns; empty for nothing.

    Attributes:
        words: the words that end an answer.
        end: the added token behind them.
        opener: the added token that opens the user's turn, if nothing but words ends an answer.
        stop_words: the words by which the end of an answer is known.
        marks: the added tokens between turns.
    """

    words: str = ""
    end: str = ""
    opener: str = ""
    stop_words: str = ""
    marks: tuple[str, ...] = ()


def _find_turns(tokenizer: PreTrainedTokenizerBase) -> Turns:
    question, answer = as_turn("user", ASKED), as_turn("assistant", ANSWERED)
    alone = _around(tokenizer, question, answer)
    amid = _around(tokenizer, question, answer, as_turn("user", ASKED_AGAIN))
    behind = [found[2] for found in (alone, amid) if found]
    if not behind:
        return Turns()
    added = tokenizer.added_tokens_decoder.values()
    tokens = any_of([token.content for token in added if is_mark(token)])
    gaps = [*behind, *(found[1] for found in (alone, amid) if found)]
    marks = tuple(sorted({mark for gap in gaps for mark in tokens.findall(gap)}))
    # Some templates close all answers but the last.
    ends = [gap for gap in behind if tokens.search(gap)]
    opener = ""
    if ends and amid and ends[0] is amid[2]:
        first = tokens.findall(amid[2])[0]
        if tokens.findall(amid[0])[-1:] == [first]:  # it opens the user's first turn, too
            opener, ends, behind = first, [], [amid[2].partition(first)[0]]
    if ends:
        end = tokens.findall(ends[0])[0]
        words = ends[0].partition(end)[0]
        words = words if words.strip() else ""
        return Turns(words, end, "", words.strip(), marks)
    same = takewhile(lambda column: len(set(column)) == 1, zip(*behind, strict=False))
    words = "".join(column[0] for column in same).rstrip()
    stop_words = words.strip()
    if amid and not stop_words and not opener and (opens := amid[2].strip()):
        space = amid[2].partition(opens)[0]
        stop_words = space[-1:] + opens
    return Turns(words, "", opener, stop_words, marks)


def _around(tokenizer: PreTrainedTokenizerBase, *turns: dict[str, str]) -> list[str] | None:
    """What the template prints around the words of turns; None if not each stands there once."""
    try:
        text = str(apply_template(tokenizer, turns, tokenize=False))
    except RefusedPromptError:
        return None
    parts = []
    for turn in turns:
        if text.count(turn["content"]) != 1:
            return None
        part, _, text = text.partition(turn["content"])
        parts.append(part)
    return [*parts, text]


def _keeps_words(chat: ChatTokenizer) -> bool:
    """Whether all control tokens at once, as words of a question, bring none into the prompt."""
    of_text = set(chat.tokenizer.convert_tokens_to_ids(sorted(chat.control_tokens)))
    # What the tokenizer writes for characters that it does not know.
    of_text -= {chat.tokenizer.unk_token_id}

    def marks(words: str) -> list[int]:
        return [id_ for id_ in chat.conversation([as_turn("user", words)]) if id_ in of_text]

    return marks(f"{ASKED} {' '.join(sorted(chat.control_tokens))}") == marks(ASKED)
