"""PRISM: people from many countries in dialogue with many models (Kirk et al., 2024).

At each turn a participant chose one of several replies, and the dialogue went on from it. A survey
tells who the participants are.
"""

import math
from pathlib import Path
from typing import Final

import pandas as pd

from prlhf.data.ids import shuffled
from prlhf.data.prompts import canonical_or_none, prompt_id
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.ingest.columns import Source, typed_rows
from prlhf.ingest.published import Node, file_named, published_files, read_nodes
from prlhf.params import DataParams, PrismParams

HUB_ID: Final = "HannahRoseKirk/prism-alignment"
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
"""The survey's fields that a user text repeats, and what it calls them."""

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

JudgedReply = tuple[str | None, str, str]
"""A prompt in canonical form, the chosen reply to it, and a rejected one.

The prompt is the dialogue up to this turn; None if a message in it is empty.
"""


def read(data: DataParams, *, seed: int) -> Source:
    """See `sources.read`."""
    root = published_files(data, [SURVEY, CONVERSATIONS], hub_id=HUB_ID)
    survey, conversations = (file_named(root, name) for name in (SURVEY, CONVERSATIONS))
    return Source(rows(survey, conversations, data.prism, seed=seed), "prism")


def rows(survey: Path, conversations: Path, params: PrismParams, *, seed: int) -> pd.DataFrame:
    """All pairs of all dialogues, in the order of the file.

    A share of the users is unseen, and so are users with a single dialogue; all their pairs are on
    the test side. A seen user's dialogues are divided between both sides. The `unit` of a row is
    its dialogue's opening: dialogues of one opening have the same first prompt, so they stay
    together.

    Raises:
        UserError: A file is damaged, or a record is not what is published.
    """
    texts = {}
    for _, node in read_nodes(survey, SURVEY_FIELDS):
        texts[node.text("user_id")] = user_text(node)
    found: list[tuple[object, ...]] = []
    dialogues: dict[str, list[str]] = {}
    unfinished = 0
    for number, node in read_nodes(conversations, CONVERSATION_FIELDS):
        user, dialogue = node.text("user_id"), node.text("conversation_id")
        if user not in texts:
            raise node.error("user_id", f"{user} is not in {survey.name}")
        judged, complete = pairs(node)
        unfinished += not complete
        if not judged:
            continue
        dialogues.setdefault(user, []).append(dialogue)
        opening = judged[0][0]
        unit = dialogue if opening is None else prompt_id(opening)
        found += [(number, user, *reply, dialogue, unit) for reply in judged]
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


def pairs(conversation: Node) -> tuple[list[JudgedReply], bool]:
    """The pairs of a dialogue, and whether a reply was chosen at each of its turns.

    Raises:
        UserError: A turn does not have one message of the user, or has several chosen replies.
    """
    turns: dict[int, list[Node]] = {}
    for node in conversation.children("conversation_history"):
        turns.setdefault(node.integer("turn"), []).append(node)
    history: list[dict[str, str]] = []
    found: list[JudgedReply] = []
    for turn, nodes in sorted(turns.items()):
        asked = [node for node in nodes if node.text("role") == "user"]
        replies = [node for node in nodes if node.text("role") == "model"]
        if len(asked) + len(replies) < len(nodes):
            odd = next(node for node in nodes if node.text("role") not in ("user", "model"))
            raise odd.error("role", f"expected user or model, found {odd.text('role')!r}")
        chosen = [node for node in replies if node.flag("if_chosen")]
        if len(asked) != 1 or len(chosen) > 1:
            raise conversation.error(
                "conversation_history",
                f"turn {turn} has {len(asked)} user messages and {len(chosen)} chosen replies",
            )
        if not chosen:
            return found, False
        history.append({"role": "user", "content": asked[0].text("content")})
        prompt = canonical_or_none(history)
        answer = chosen[0].text("content")
        found += [
            (prompt, answer, reply.text("content")) for reply in replies if reply is not chosen[0]
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


def user_text(node: Node) -> str | None:
    """What the survey says of a user, as a paragraph; None if it says nothing.

    Values that are missing, empty or "Prefer not to say" are left out.

    Raises:
        UserError: A field has another type than text, or a rank is no whole number.
    """
    sentences = []
    if node.fields.get("order_stated_prefs") is not None:
        ranks = node.child("order_stated_prefs")
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
        value = " ".join((node.text_or_none(name) or "").split())
        if value and value.casefold() != UNSAID:
            sentences.append(f"{label}: {value}")
    ended = [text if text.endswith((".", "!", "?")) else f"{text}." for text in sentences]
    return " ".join(ended) or None


def _floor(number: float) -> int:
    """Rounded down, allowing for float error: 0.29 * 100 is a little less than 29."""
    return math.floor(number + 1e-9)
