"""What a judge is, and the oracles: which of two answers a user with a known preference would take.

The built-in tasks have an oracle, a plain measure of the text in the direction of the user's
preference group. An oracle sees one property of a text and nothing else: it cannot tell a true
answer from a false one, or sense from nonsense. It is therefore never used alone: empty and
degenerate texts lose before it is asked (see `comparisons.judge`), fluency is reported beside it,
and so is how often it agrees with the held-out choices of the data set's own users.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from prlhf.evaluation.text import words

if TYPE_CHECKING:
    import pandas as pd


QUESTION_COLUMNS = ("user_id", "group", "prompt_id", "prompt", "first", "second")
"""A question to a judge: which of two answers, `first` or `second`, the user would take."""


class Judge(Protocol):
    """Compares two answers to the same prompt on behalf of a user."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def description(self) -> str:
        """What it measures and what it cannot see, for the report."""

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """Whether it can speak for the user of each question, `[questions]`."""

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """Its verdicts, for questions that it knows the users of.

        Args:
            questions: Rows with `QUESTION_COLUMNS`; prompts in canonical form.

        Returns:
            As many rows in the same order: `verdict`, 1 where the user would take the first answer,
            -1 the second, 0 neither, missing where the judge gave no verdict; and columns of its
            own, if it has more to say.
        """


@dataclass(frozen=True)
class Criterion:
    """Prefers the text with the higher (`sign` 1) or lower (-1) `measure`.

    Differences of at most `tolerance` are a tie.
    """

    measure: Callable[[str], float]
    sign: int
    tolerance: float = 0.0


@dataclass(frozen=True)
class Oracle:
    """A judge that knows each group's criterion."""

    name: str
    description: str
    criteria: Mapping[str, Criterion] = field(repr=False)

    def knows(self, questions: pd.DataFrame) -> NDArray[np.bool_]:
        """See `Judge`: the groups that have a criterion."""
        return questions["group"].isin(self.criteria).to_numpy(dtype=bool)

    def verdicts(self, questions: pd.DataFrame) -> pd.DataFrame:
        """See `Judge`."""
        import pandas as pd

        sides = (list(questions[column]) for column in ("first", "second", "group"))
        return pd.DataFrame({"verdict": pd.array(self.compare(*sides), dtype="Int8")})

    def compare(
        self, first: Sequence[str], second: Sequence[str], groups: Sequence[str]
    ) -> NDArray[np.int8]:
        """1 where the group prefers the first text, -1 where the second, 0 where neither.

        Raises:
            KeyError: A group without a criterion.
        """
        # Generic answers are compared once for every user: measure each text once.
        known: dict[tuple[Callable[[str], float], str], float] = {}

        def measure(criterion: Criterion, text: str) -> float:
            key = (criterion.measure, text)
            if key not in known:
                known[key] = criterion.measure(text)
            return known[key]

        verdicts = np.zeros(len(groups), dtype=np.int8)
        for row, (one, other, group) in enumerate(zip(first, second, groups, strict=True)):
            criterion = self.criteria[group]
            gap = criterion.sign * (measure(criterion, one) - measure(criterion, other))
            if abs(gap) > criterion.tolerance:
                verdicts[row] = 1 if gap > 0 else -1
        return verdicts


def word_count(text: str) -> float:
    """The number of words."""
    return float(len(words(text)))


_VOWELS = re.compile(r"[aeiouy]+")
_SILENT_END = re.compile(
    r"(?:[^laeiouy]e|[aeiouy]le|[^aeiouylszxcgh]es|[aeiouy]les|[^aeiouytd]ed)$"
)


def syllables(word: str) -> int:
    """Syllables of an English word, from its spelling: groups of vowels, less a silent end.

    Right for most common words; unusual spellings ("naive", "recipe") are off by one.
    """
    letters = re.sub(r"[^a-z]", "", word.lower())
    count = len(_VOWELS.findall(letters))
    if count > 1 and _SILENT_END.search(letters):
        count -= 1
    return max(count, 1)


_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n+")


def reading_grade(text: str) -> float:
    """The Flesch-Kincaid grade: years of schooling that a text's form asks for (English).

    `0.39 words/sentence + 11.8 syllables/word - 15.59` (Kincaid et al., 1975). It sees the length
    of sentences and words, not what they say, and is coarse on texts of one or two sentences.
    0 for a text without words.
    """
    found = words(text)
    if not found:
        return 0.0
    sentences = sum(1 for part in _SENTENCE_END.split(text) if words(part))
    spoken = sum(syllables(word) for word in found)
    return 0.39 * len(found) / max(sentences, 1) + 11.8 * spoken / len(found) - 15.59


_WARM_PHRASES = (
    r"thank(?:s| you)", r"you'?re welcome", r"welcome", r"please", r"hello", r"hi", r"hey", r"dear",
    r"(?:my )?friends?", r"sweetie", r"buddy", r"love(?:ly|s|d)?", r"wonderful(?:ly)?", r"great",
    r"awesome", r"amazing", r"fantastic", r"delightful", r"happy", r"happily", r"glad", r"enjoy",
    r"fun", r"hope", r"congratulations", r"good luck", r"best of luck", r"good (?:question|job)",
    r"well done", r"proud", r"don'?t worry", r"no worries", r"take care", r"cozy", r"cosy",
    r"you(?:'ve| have)? got this", r"you can do (?:it|this)", r"keep (?:it up|going)", r"let'?s",
    r"of course", r"absolutely", r"happy to help", r"together", r"smile", r"hugs?", r"kindly",
)  # fmt: skip
_WARM = re.compile(rf"\b(?:{'|'.join(_WARM_PHRASES)})\b", re.IGNORECASE)
_SECOND_PERSON = re.compile(r"\b(?:you|your|yours|yourself)\b", re.IGNORECASE)
_EXCLAMATION = re.compile(r"!+")
_CHEER = re.compile("[\u2661\u2764\u263a\U0001f300-\U0001faff]|[:;]-?[)D]")

SHORTEST_FOR_WARMTH = 20
"""Words below which `warmth` stops rising: one kind word is not a warm answer."""


def warmth(text: str) -> float:
    """Marks of friendliness per 100 words (English).

    Counts greetings, thanks, encouragement and kind words, exclamations, cheerful symbols, and
    half a mark for each "you" or "your". It sees words, not tone: irony passes for warmth, and a
    coldness expressed in neutral words is merely the absence of marks.
    """
    marks = (
        len(_WARM.findall(text))
        + len(_EXCLAMATION.findall(text))
        + len(_CHEER.findall(text))
        + 0.5 * len(_SECOND_PERSON.findall(text))
    )
    return 100.0 * marks / max(len(words(text)), SHORTEST_FOR_WARMTH)


GRADE_TOLERANCE = 0.5
"""Grades within which two texts count as equally hard to read."""

ORACLES: Mapping[str, Oracle] = {
    "length": Oracle(
        "length",
        "The oracle counts words: users who prefer longer answers take the one with more words, "
        "users who prefer shorter answers the one with fewer. Equal counts are a tie.",
        {"longer": Criterion(word_count, 1), "shorter": Criterion(word_count, -1)},
    ),
    "style": Oracle(
        "style",
        "The oracle measures the property that each group of users cares about: simple and expert "
        "by the Flesch-Kincaid grade (half a grade or less apart is a tie), concise and thorough "
        "by the number of words, warm and curt by marks of friendliness per 100 words (kind "
        "words, exclamations, direct address).",
        {
            "simple": Criterion(reading_grade, -1, GRADE_TOLERANCE),
            "expert": Criterion(reading_grade, 1, GRADE_TOLERANCE),
            "concise": Criterion(word_count, -1),
            "thorough": Criterion(word_count, 1),
            "warm": Criterion(warmth, 1),
            "curt": Criterion(warmth, -1),
        },
    ),
}
"""The oracle of each task that a data set can name."""


def get_oracle(task: str | None) -> Oracle | None:
    """The oracle of a data set whose known task is `task`; None where there is none.

    Args:
        task: `task` of dataset.json; None where what users prefer is not known.
    """
    return None if task is None else ORACLES.get(task)
