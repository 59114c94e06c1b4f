"""The built-in data sets: simulated users who judge responses sampled from the base model.

The responses are stored (`data/seed/<name>/responses.jsonl.gz`, one line each: `prompt_id`,
`prompt`, `instruction`, `response`, `tokens`); who judges which pair of them is drawn here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prlhf.data.columns import typed_rows
from prlhf.data.contract import canonical_prompt
from prlhf.data.files import Records, read_file
from prlhf.data.randomness import generator
from prlhf.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SEED_ROOT: Final = Path("data/seed")
"""The stored responses, in a clone of the repository."""

MIN_LENGTH_RATIO: Final = 1.5
"""A longer response has at least this many times the words of the shorter one it is paired with."""


@dataclass(frozen=True)
class SimulatedUser:
    """A user of a built-in data set.

    Attributes:
        user_id: The name that the data set knows the user by.
        group: The user's taste: "longer" or "shorter"; for `style` the instruction preferred.
        unseen: Held out whole: no model is trained on this user's judgements.
    """

    user_id: str
    group: str
    unseen: bool = False


LENGTH_USERS: Final = (
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
)
"""Seven to three, and three to one among the unseen: the paper's conflicting length preferences."""

STYLE_USERS: Final = (
    SimulatedUser("otto", "simple"),
    SimulatedUser("pia", "expert"),
    SimulatedUser("quinn", "concise"),
    SimulatedUser("rosa", "thorough"),
    SimulatedUser("sami", "warm"),
    SimulatedUser("tess", "curt"),
)
"""Six users, after PSOUPS: for each there is one who wants the opposite."""

OPPOSITES: Final = {
    "simple": "expert",
    "expert": "simple",
    "concise": "thorough",
    "thorough": "concise",
    "warm": "curt",
    "curt": "warm",
}

STATED: Final = {
    "longer": "I like long, detailed answers of several sentences.",
    "shorter": "I like short answers of one sentence.",
    "simple": "I like simple words that a child can follow.",
    "expert": "I like the precise, technical language of an expert.",
    "concise": "I like concise answers that come straight to the point.",
    "thorough": "I like thorough answers that leave nothing out.",
    "warm": "I like a warm, friendly tone.",
    "curt": "I like a plain, matter-of-fact tone without pleasantries.",
}
"""What the users of each group say of themselves: `user_text`. They mean what they say."""

# Of one prompt: pairs (what the user prefers, what not).
_Pairs = list[tuple[str, str]]
# Prompt -> instruction -> its distinct responses, in stored order.
_Responses = dict[str, dict[str, list[str]]]


def build(name: str, *, seed: int, pairs_per_user: int, root: Path = SEED_ROOT) -> pd.DataFrame:
    """All judgements of a built-in data set, user by user.

    Each user judges `pairs_per_user` prompts drawn without replacement. When all prompts are used
    up, further pairs are other responses to the same prompts; no pair comes twice. Users draw from
    streams of their own, and a larger `pairs_per_user` only adds to a smaller one's pairs.

    Args:
        name: `length` or `style`.
        seed: The run's seed.
        pairs_per_user: How many pairs each user judges.
        root: The directory that holds `<name>/responses.jsonl.gz`.

    Raises:
        UserError: The stored responses are missing or damaged, or there are fewer distinct pairs
            than asked for.
    """
    import pandas as pd

    responses = _read_responses(root / name / "responses.jsonl.gz")
    users, pairs_of = (
        (LENGTH_USERS, _length_pairs) if name == "length" else (STYLE_USERS, _style_pairs)
    )
    judgements: list[tuple[str, str, str, str, str, bool]] = []
    for user in users:
        pairs = {prompt: pairs_of(found, user.group) for prompt, found in responses.items()}
        drawn = _draw(pairs, seed, f"{name}:{user.user_id}", pairs_per_user)
        if len(drawn) < pairs_per_user:
            raise UserError(
                f"the built-in data set {name} has {len(drawn)} distinct pairs for user "
                f"{user.user_id}, {pairs_per_user} are asked for",
                where="params.yaml: data.pairs_per_user",
                fix=f"at most {len(drawn)}",
            )
        judgements += [
            (user.user_id, canonical_prompt(prompt), chosen, rejected, user.group, user.unseen)
            for prompt, chosen, rejected in drawn
        ]
    names = ["user_id", "prompt", "chosen", "rejected", "group", "unseen"]
    frame = pd.DataFrame(judgements, columns=names)
    frame["user_text"] = frame["group"].map(STATED)
    return typed_rows(frame.assign(row=range(1, len(frame) + 1), source=name))


def _read_responses(path: Path) -> _Responses:
    if not path.exists():
        raise UserError(
            "the built-in data set's responses are missing",
            where=path,
            fix=f"set data.path to {SEED_ROOT}; `git checkout -- {SEED_ROOT}` restores them",
        )
    fields = ("prompt", "instruction", "response")
    records = read_file(path, fields)
    columns = [_column(records, name) for name in fields]
    responses: _Responses = {}
    for prompt, instruction, response in zip(*columns, strict=True):
        found = responses.setdefault(prompt, {}).setdefault(instruction, [])
        if response.strip() and response not in found:
            found.append(response)
    return responses


def _column(records: Records, name: str) -> list[str]:
    column = records.columns.get(name, [None])
    for index, value in enumerate(column):
        if not isinstance(value, str):
            raise UserError(f'no text in "{name}"', where=records.where(index))
    return list(column)


def _length_pairs(found: dict[str, list[str]], group: str) -> _Pairs:
    """The oracle's verdict on a pair of lengths is the number of words."""
    words = {text: len(text.split()) for texts in found.values() for text in texts}
    pairs = [
        (long, short)
        for short in found.get("short", [])
        for long in found.get("long", [])
        if words[long] >= MIN_LENGTH_RATIO * words[short]
    ]
    return pairs if group == "longer" else [(short, long) for long, short in pairs]


def _style_pairs(found: dict[str, list[str]], group: str) -> _Pairs:
    return [
        (own, other)
        for own in found.get(group, [])
        for other in found.get(OPPOSITES[group], [])
        if own != other
    ]


def _draw(pairs: dict[str, _Pairs], seed: int, user: str, count: int) -> list[tuple[str, str, str]]:
    """Up to `count` pairs, each with its prompt: every prompt once before any comes again."""
    random = generator(seed, "builtin", user)
    prompts = sorted(prompt for prompt, found in pairs.items() if found)
    order = [prompts[index] for index in random.permutation(len(prompts))]
    ranked = {prompt: random.permutation(len(pairs[prompt])) for prompt in order}
    rounds = max(map(len, ranked.values()), default=0)
    everything = (
        (prompt, *pairs[prompt][ranked[prompt][turn]])
        for turn in range(rounds)
        for prompt in order
        if turn < len(ranked[prompt])
    )
    return [pair for _, pair in zip(range(count), everything, strict=False)]
