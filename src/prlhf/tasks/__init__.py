"""The built-in tasks, one module each, and what they are made of.

A task's module holds all that belongs to it: its users and groups, what they say of themselves, how
their pairs are made of the stored responses, how those responses were sampled, and how answers are
graded. A new task is a module here that defines a `TASK`, its name among the values of `data.name`
in `prlhf.params`, and its responses in `data/seed/<name>/`.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

Responses = Mapping[str, list[str]]
"""The distinct responses to one prompt by the instruction they were sampled under."""

Pairs = list[tuple[str, str]]
"""Responses to one prompt: what a user prefers, and what not."""

# Thai, Lao, Burmese, Khmer, kana and Han: scripts written without spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003fffd"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


def words(text: str) -> list[str]:
    """The words of a text, case-folded, without the punctuation around them.

    A word is what stands between spaces and holds at least one letter or digit. In scripts that
    put no spaces between words, each character counts as one word.
    """
    stripped = (_EDGES.sub("", token) for token in _TOKEN.findall(text))
    return [word.casefold() for word in stripped if word]


def word_count(text: str) -> float:
    """The number of words."""
    return float(len(words(text)))


@dataclass(frozen=True)
class SimulatedUser:
    """A user of a built-in data set.

    Attributes:
        user_id: The user's name in the data.
        group: The group whose preference the user has.
        unseen: Held out whole: no model is trained on this user's judgements.
    """

    user_id: str
    group: str
    unseen: bool = False


@dataclass(frozen=True)
class Criterion:
    """Prefers the text with the higher (`sign` 1) or lower (-1) `measure`.

    Differences of at most `tolerance` are a tie.
    """

    measure: Callable[[str], float]
    sign: int
    tolerance: float = 0.0


@dataclass(frozen=True)
class Group:
    """Users of one preference.

    Attributes:
        says: What they say of themselves: `user_text`. They mean what they say.
        wants: What an LLM judge is told that they want of an answer.
        criterion: The oracle's measure of an answer.
    """

    says: str
    wants: str
    criterion: Criterion


@dataclass(frozen=True)
class Recipe:
    """One way of answering: what the base model is told and which of its answers are kept.

    Bounds are inclusive; `max_tokens` is also where sampling gives up on an answer. Blank lines
    count as lines.
    """

    instruction: str
    system: str
    examples: tuple[tuple[str, str], ...]
    min_words: int
    max_words: int
    max_tokens: int
    max_sentences: int = 99
    max_lines: int = 1

    def accepts(self, text: str) -> bool:
        """Whether an answer is within the bounds and ends as a sentence."""
        sentences = [part for part in re.split(r"[.!?]+(?:\s|$)", text) if part.strip()]
        return (
            self.min_words <= len(text.split()) <= self.max_words
            and len(text.splitlines()) <= self.max_lines
            and text.rstrip()[-1:] in tuple('.!?"')
            and len(sentences) <= self.max_sentences
        )


@dataclass(frozen=True)
class Task:
    """A built-in data set of simulated users, and how answers to it are graded.

    Attributes:
        name: Its name: that of its module, of `data.name`, and of its directory in `data/seed`.
        users: Its users, in the order of the data set.
        groups: Their groups by name.
        pairs: The pairs of responses to a prompt that a user of a group can judge, as a function
            of the responses and the group's name.
        oracle: What the oracle measures, for the report.
        recipes: How the stored responses were sampled.
    """

    name: str
    users: tuple[SimulatedUser, ...]
    groups: Mapping[str, Group]
    pairs: Callable[[Responses, str], Pairs]
    oracle: str
    recipes: tuple[Recipe, ...]


@cache
def built_in_tasks() -> Mapping[str, Task]:
    """The tasks by name, one from each module of this package."""
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    tasks = [importlib.import_module(f"{__name__}.{name}").TASK for name in names]
    return {task.name: task for task in tasks}
