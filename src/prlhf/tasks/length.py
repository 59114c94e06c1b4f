"""The task `length`: users who prefer longer answers, and users who prefer shorter ones."""

from typing import Final

from prlhf.tasks import Criterion, Group, Pairs, Recipe, Responses, SimulatedUser, Task, word_count

MIN_LENGTH_RATIO: Final = 1.5
"""A longer response has at least this many times the words of the shorter one it is paired with."""

SOUP: Final = "How can I keep soup warm for longer?"
LEAVES: Final = "Why do leaves fall in autumn?"

SHORT: Final = Recipe(
    "short",
    "Answer in one short sentence.",
    (
        (SOUP, "Pour it into a vacuum flask that you have warmed with hot water."),
        (LEAVES, "Trees drop their leaves to save water during the cold months."),
    ),
    min_words=6,
    max_words=22,
    max_tokens=40,
    max_sentences=1,
)
LONG: Final = Recipe(
    "long",
    "Answer in two long, detailed paragraphs.",
    (),
    min_words=100,
    max_words=160,
    max_tokens=220,
    max_lines=7,
)


def _pairs(responses: Responses, group: str) -> Pairs:
    words = {text: len(text.split()) for texts in responses.values() for text in texts}
    pairs = [
        (long, short)
        for short in responses.get("short", [])
        for long in responses.get("long", [])
        if words[long] >= MIN_LENGTH_RATIO * words[short]
    ]
    return pairs if group == "longer" else [(short, long) for long, short in pairs]


TASK: Final = Task(
    name="length",
    # Seven to three, and three to one among the unseen: the paper's conflicting preferences.
    users=(
        SimulatedUser("ada", "longer"),
        SimulatedUser("ben", "longer"),
        SimulatedUser("chloe", "shorter"),
        SimulatedUser("dan", "longer"),
        SimulatedUser("eve", "longer"),
        SimulatedUser("finn", "shorter"),
        SimulatedUser("gus", "longer"),
        SimulatedUser("hana", "longer"),
        SimulatedUser("ivo", "shorter"),
        SimulatedUser("june", "longer"),
        SimulatedUser("kai", "longer", unseen=True),
        SimulatedUser("lea", "longer", unseen=True),
        SimulatedUser("milo", "shorter", unseen=True),
        SimulatedUser("nora", "longer", unseen=True),
    ),
    groups={
        "longer": Group(
            says="I like long, detailed answers of several sentences.",
            wants="it is long and has more to say; the longer one is better.",
            criterion=Criterion(word_count, 1),
        ),
        "shorter": Group(
            says="I like short answers of one sentence.",
            wants="it is short; the shorter one is better.",
            criterion=Criterion(word_count, -1),
        ),
    },
    pairs=_pairs,
    oracle=(
        "The oracle counts words: users who prefer longer answers take the one with more words, "
        "users who prefer shorter answers the one with fewer. Equal counts are a tie."
    ),
    recipes=(SHORT, LONG),
)
