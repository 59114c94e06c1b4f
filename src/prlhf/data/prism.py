"""PRISM: people from many countries in dialogue with many models (Kirk et al., 2024).

At each turn a participant chose one of several replies, and the dialogue went on from it. A survey
tells who the participants are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.columns import typed_rows
from prlhf.data.contract import EmptyPromptError, canonical_prompt, prompt_id
from prlhf.data.entries import Entry
from prlhf.data.files import read_objects
from prlhf.data.randomness import shuffled
from prlhf.errors import UserError
from prlhf.progress import say

if TYPE_CHECKING:
    import pandas as pd

    from prlhf.params import PrismParams

SURVEY: Final = "survey.jsonl"
CONVERSATIONS: Final = "conversations.jsonl"

PROFILE: Final = {
    "age": "Age",
    "gender": "Gender",
    "education": "Education",
    "employment_status": "Employment",
    "marital_status": "Marital status",
    "english_proficiency": "English proficiency",
}
"""The survey's fields that a user text tells, in its words."""

SURVEY_FIELDS: Final = ("user_id", "order_stated_prefs", "self_description", *PROFILE)
CONVERSATION_FIELDS: Final = ("conversation_id", "user_id", "conversation_history")

ASPECTS: Final = (
    "values",
    "creativity",
    "fluency",
    "factuality",
    "diversity",
    "safety",
    "personalisation",
    "helpfulness",
)
"""What users ranked by importance. A ninth, "other", does not say what it is."""

MOST_IMPORTANT: Final = 3
UNSAID: Final = "prefer not to say"


@dataclass(frozen=True)
class Pair:
    """The chosen reply of a turn against one that was rejected.

    Attributes:
        prompt: Canonical: the dialogue up to this turn; None if a message in it is empty.
        chosen: The reply that the dialogue went on from.
        rejected: Another one.
    """

    prompt: str | None
    chosen: str
    rejected: str


def rows(survey: Path, conversations: Path, params: PrismParams, *, seed: int) -> pd.DataFrame:
    """All pairs of all dialogues, in the order of the file.

    A share of the users is unseen, and so are users with a single dialogue, all of whose pairs are
    on the test side. A seen user's dialogues are shared out between both sides. The `unit` of a row
    is its dialogue's opening: dialogues of the same opening cannot be told apart at their first
    turn, so they stay together.

    Raises:
        UserError: A file is damaged, or a record is not what is published.
    """
    import pandas as pd

    texts = {}
    for _, where, record in read_objects(survey, SURVEY_FIELDS):
        entry = Entry(record, where)
        texts[entry.text("user_id")] = user_text(entry)
    found: list[tuple[object, ...]] = []
    dialogues: dict[str, list[str]] = {}
    unfinished = 0
    for number, where, record in read_objects(conversations, CONVERSATION_FIELDS):
        entry = Entry(record, where)
        user, dialogue = entry.text("user_id"), entry.text("conversation_id")
        if user not in texts:
            raise entry.error("user_id", f"{user} is not in {survey.name}")
        judged, complete = pairs(entry)
        unfinished += not complete
        if not judged:
            continue
        dialogues.setdefault(user, []).append(dialogue)
        opening = judged[0].prompt
        unit = dialogue if opening is None else prompt_id(opening)
        found += [
            (number, user, pair.prompt, pair.chosen, pair.rejected, dialogue, unit)
            for pair in judged
        ]
    if not found:
        raise UserError("no turn has a chosen and a rejected reply", where=conversations)
    if unfinished:
        say(f"ingest: prism: {unfinished} dialogues are read up to a turn without a choice")
    names = ["row", "user_id", "prompt", "chosen", "rejected", "dialogue", "unit"]
    frame = pd.DataFrame(found, columns=names)
    seen = seen_users(dialogues, params.seen_users, seed)
    train = {
        dialogue
        for user in sorted(seen)
        for dialogue in training_dialogues(dialogues[user], params.train_dialogues, seed)
    }
    return typed_rows(
        frame.assign(
            source=conversations.name,
            user_text=frame["user_id"].map(texts),
            unseen=~frame["user_id"].isin(seen),
            side=frame["dialogue"].isin(train).map({True: "train", False: "test"}),
        )
    )


def pairs(conversation: Entry) -> tuple[list[Pair], bool]:
    """The pairs of a dialogue, and whether a reply was chosen at each of its turns.

    Raises:
        UserError: A turn does not have one message of the user, or has several chosen replies.
    """
    history: list[dict[str, str]] = []
    found: list[Pair] = []
    for turn, entries in _turns(conversation):
        asked = [entry for entry in entries if entry.text("role") == "user"]
        replies = [entry for entry in entries if entry.text("role") == "model"]
        if len(asked) + len(replies) < len(entries):
            odd = next(entry for entry in entries if entry.text("role") not in ("user", "model"))
            raise odd.error("role", f"expected user or model, found {odd.text('role')!r}")
        chosen = [entry for entry in replies if entry.flag("if_chosen")]
        if len(asked) != 1 or len(chosen) > 1:
            raise conversation.error(
                "conversation_history",
                f"turn {turn} has {len(asked)} user messages and {len(chosen)} chosen replies",
            )
        if not chosen:
            return found, False
        history.append({"role": "user", "content": asked[0].text("content")})
        try:
            prompt = canonical_prompt(history)
        except EmptyPromptError:
            prompt = None
        answer = chosen[0].text("content")
        found += [
            Pair(prompt, answer, reply.text("content"))
            for reply in replies
            if reply is not chosen[0]
        ]
        history.append({"role": "assistant", "content": answer})
    return found, True


def seen_users(dialogues: dict[str, list[str]], share: float, seed: int) -> set[str]:
    """A random share of the users, rounded down, less those with a single dialogue."""
    order = shuffled(dialogues, seed, "prism_users")
    drawn = order[: _floor(len(order) * share)]
    return {user for user in drawn if len(dialogues[user]) > 1}


def training_dialogues(dialogues: list[str], share: float, seed: int) -> list[str]:
    """A random share of one user's dialogues, rounded down but at least one and never all."""
    count = max(1, min(len(dialogues) - 1, _floor(len(dialogues) * share)))
    return shuffled(dialogues, seed, "prism_dialogues")[:count]


def user_text(entry: Entry) -> str | None:
    """What the survey tells of a user, as a paragraph; None if it tells nothing.

    Values that are missing, empty or "Prefer not to say" are left out.

    Raises:
        UserError: A field has another type than text, or a rank is no whole number.
    """
    sentences = []
    if entry.fields.get("order_stated_prefs") is not None:
        ranks = entry.child("order_stated_prefs")
        ranked = sorted(
            (ranks.integer(name), place, name)
            for place, name in enumerate(ASPECTS)
            if ranks.fields.get(name) is not None
        )
        if ranked:
            names = [name for _, _, name in ranked[:MOST_IMPORTANT]]
            sentences.append(f"Matters most to them in a language model: {', '.join(names)}")
    labels = {"self_description": "In their own words"} | PROFILE
    for name, label in labels.items():
        value = " ".join((entry.text_or_none(name) or "").split())
        if value and value.casefold() != UNSAID:
            sentences.append(f"{label}: {value}")
    ended = [text if text.endswith((".", "!", "?")) else f"{text}." for text in sentences]
    return " ".join(ended) or None


def _turns(conversation: Entry) -> Iterator[tuple[int, list[Entry]]]:
    """The messages of each turn, in order."""
    entries = conversation.children("conversation_history")
    numbered = sorted(((entry.integer("turn"), entry) for entry in entries), key=_turn)
    for turn, group in itertools.groupby(numbered, key=_turn):
        yield turn, [entry for _, entry in group]


def _turn(numbered: tuple[int, Entry]) -> int:
    return numbered[0]


def _floor(number: float) -> int:
    """Rounded down, and not by one too many: 0.29 * 100 is a little less than 29."""
    return math.floor(number + 1e-9)
