"""The task `style`: six users with three opposed tastes, after PSOUPS (Jang et al., 2023)."""

import re
from dataclasses import replace
from typing import Final

from prlhf.tasks import (
    Criterion,
    Group,
    Pairs,
    Recipe,
    Responses,
    SimulatedUser,
    Task,
    word_count,
    words,
)
from prlhf.tasks.length import LEAVES, SHORT, SOUP

GRADE_TOLERANCE: Final = 0.5
"""Grades within which two texts count as equally hard to read."""

SHORTEST_FOR_WARMTH: Final = 20
"""Words below which `warmth` stops rising: one kind word is not a warm answer."""

OPPOSITES: Final = {
    "simple": "expert",
    "expert": "simple",
    "concise": "thorough",
    "thorough": "concise",
    "warm": "curt",
    "curt": "warm",
}
"""What the users of a group reject. Groups are called after the instruction they prefer."""

_VOWELS = re.compile(r"[aeiouy]+")
_SILENT_END = re.compile(
    r"(?:[^laeiouy]e|[aeiouy]le|[^aeiouylszxcgh]es|[aeiouy]les|[^aeiouytd]ed)$"
)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|\n+")

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


def syllables(word: str) -> int:
    """Syllables of an English word, from its spelling: groups of vowels, less a silent end.

    Right for most common words; unusual spellings ("naive", "recipe") are off by one.
    """
    letters = re.sub(r"[^a-z]", "", word.lower())
    count = len(_VOWELS.findall(letters))
    if count > 1 and _SILENT_END.search(letters):
        count -= 1
    return max(count, 1)


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


def _pairs(responses: Responses, group: str) -> Pairs:
    return [
        (own, other)
        for own in responses.get(group, [])
        for other in responses.get(OPPOSITES[group], [])
        if own != other
    ]


def _recipe(
    instruction: str, system: str, *, soup: str, leaves: str, max_tokens: int = 70
) -> Recipe:
    """Answers of 8 to 45 words, shown by one to each of two questions."""
    return Recipe(instruction, system, ((SOUP, soup), (LEAVES, leaves)), 8, 45, max_tokens)


TASK: Final = Task(
    name="style",
    users=(
        SimulatedUser("otto", "simple"),
        SimulatedUser("pia", "expert"),
        SimulatedUser("quinn", "concise"),
        SimulatedUser("rosa", "thorough"),
        SimulatedUser("sami", "warm"),
        SimulatedUser("tess", "curt"),
    ),
    groups={
        "simple": Group(
            says="I like simple words that a child can follow.",
            wants="it is so simple that a child in elementary school understands it.",
            criterion=Criterion(reading_grade, -1, GRADE_TOLERANCE),
        ),
        "expert": Group(
            says="I like the precise, technical language of an expert.",
            wants="it is so precise and technical that an expert in the field learns from it.",
            criterion=Criterion(reading_grade, 1, GRADE_TOLERANCE),
        ),
        "concise": Group(
            says="I like concise answers that come straight to the point.",
            wants="it is concise: it comes to the point and says no more than is needed.",
            criterion=Criterion(word_count, -1),
        ),
        "thorough": Group(
            says="I like thorough answers that leave nothing out.",
            wants="it is informative: it is thorough, and goes into the background and details.",
            criterion=Criterion(word_count, 1),
        ),
        "warm": Group(
            says="I like a warm, friendly tone.",
            wants="it is friendly, warm and encouraging.",
            criterion=Criterion(warmth, 1),
        ),
        "curt": Group(
            says="I like a plain, matter-of-fact tone without pleasantries.",
            wants="it is curt and unfriendly, without courtesies or encouragement.",
            criterion=Criterion(warmth, -1),
        ),
    },
    pairs=_pairs,
    oracle=(
        "The oracle measures the property that each group of users cares about: simple and expert "
        "by the Flesch-Kincaid grade (half a grade or less apart is a tie), concise and thorough "
        "by the number of words, warm and curt by marks of friendliness per 100 words (kind "
        "words, exclamations, direct address)."
    ),
    recipes=(
        _recipe(
            "simple",
            "Explain it to a young child, in short and easy words.",
            soup="Put the soup in a special bottle that keeps it hot, and shut the lid tight!",
            leaves="Trees get sleepy when it is cold, so they let go of their leaves and rest.",
        ),
        _recipe(
            "expert",
            "Explain it to an expert, with precise technical terms.",
            soup="Minimise conductive and convective losses with a preheated, evacuated "
            "double-walled vessel, and limit the headspace to reduce evaporative cooling.",
            leaves="Decreasing photoperiod lowers auxin flux, which sensitises the abscission zone "
            "to ethylene; enzymatic hydrolysis of the middle lamella then detaches the petiole.",
            max_tokens=80,
        ),
        replace(SHORT, instruction="concise", min_words=5, max_words=20),
        Recipe(
            "thorough",
            "Answer in one full paragraph of three or four sentences.",
            (
                (
                    SOUP,
                    "Pour the soup into a vacuum flask, because the empty space between its walls "
                    "lets very little heat escape. Warm the flask first by filling it with boiling "
                    "water for a few minutes. Fill it to the top, since air inside cools the soup, "
                    "and close the lid at once. Treated this way, the soup will still be hot at "
                    "lunch.",
                ),
                (
                    LEAVES,
                    "As the days grow shorter, trees make less sugar in their leaves and begin to "
                    "draw the useful parts back into the branches. Then a thin layer of cells "
                    "grows at the base of each stem and cuts off its water. The leaf dries and the "
                    "wind takes it away. Without leaves, the tree loses less water through the "
                    "winter.",
                ),
            ),
            min_words=40,
            max_words=75,
            max_tokens=110,
        ),
        _recipe(
            "warm",
            "Be warm, friendly and encouraging.",
            soup="What a lovely question! Try a good flask, my friend, and your soup will stay "
            "nice and cosy until lunch. Enjoy every spoonful!",
            leaves="I love that you noticed! Trees let go of their leaves to rest for the winter, "
            "and they will be so happy to greet you with new ones in spring!",
        ),
        _recipe(
            "curt",
            "Be cold, blunt and impatient.",
            soup="Use a flask. Obviously. It holds heat, and that is all there is to say.",
            leaves="It is cold. They drop them to save water. Anyone could look that up.",
        ),
    ),
)
