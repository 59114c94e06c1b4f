"""What speaks against relying on a result: bad or torn texts, a judge whom users contradict."""

from collections.abc import Mapping, Sequence
from typing import Any

from prlhf.metrics.reading import broken, figure, method_label, number, percent

MAX_NLL_ABOVE_BASE = 0.7
"""Nats per token above the base model's own texts beyond which the report warns."""

MAX_BROKEN = 0.05
"""Share of empty or degenerate texts beyond which the report warns."""

MAX_UNFINISHED = 0.05
"""Share of answers cut off at the longest length beyond which the report warns."""

MIN_AGREEMENT = 0.9
"""Agreement of the judge with the users' own choices below which the report warns."""


def write(metrics: Mapping[str, Any], personalized: Sequence[str]) -> list[str]:
    """One sentence for each thing.

    Args:
        metrics: The content of metrics.json.
        personalized: The methods that serve single users.
    """
    warnings = []
    for name in sorted(metrics.get("fluency", {})):
        places: dict[str, tuple[str, ...]] = {"": ()}
        if name in personalized:
            groups = sorted(metrics["fluency"][name].get("groups", {}))
            places |= {f" for “{group}” users": ("groups", group) for group in groups}
        for who, place in places.items():
            warnings += _quality(metrics, name, place, who)
    agreement = figure(metrics, "judge_agreement", "all")
    if agreement is not None and agreement < MIN_AGREEMENT:
        warnings.append(
            f"The judge of the answers agrees with only {percent(agreement)} of the users' "
            "own held-out choices: read the win rates with that in mind."
        )
    return warnings


def of_limits(reference: Mapping[str, Any], *, reads_texts: bool) -> list[str]:
    """What the token limits cut from the data, and the pairs set aside for it.

    Args:
        reference: The content of reference.json.
        reads_texts: Whether one of the methods reads what users say of themselves.
    """
    found = dict(reference["warnings"])
    if not reads_texts:
        found.pop("max_user_text", None)
    return [f"{sentence[:1].upper()}{sentence[1:]}." for sentence in found.values()]


def _quality(metrics: Mapping[str, Any], name: str, place: tuple[str, ...], who: str) -> list[str]:
    found = []
    nll = figure(metrics, "fluency", name, *place, "mean_nll")
    base = figure(metrics, "fluency", name, "base_mean_nll")
    if nll is not None and base is not None and nll - base > MAX_NLL_ABOVE_BASE:
        found.append(
            f"{method_label(name)}{who}: its answers lie {number(nll - base)} nats per token above "
            "the base model's own, which is a sign of unnatural text."
        )
    share = broken(metrics, name, *place)
    if share is not None and share > MAX_BROKEN:
        found.append(
            f"{method_label(name)}{who}: {percent(share)} of its answers are empty or degenerate."
        )
    cut = figure(metrics, "fluency", name, *place, "unfinished")
    if cut is not None and cut > MAX_UNFINISHED:
        found.append(
            f"{method_label(name)}{who}: {percent(cut)} of its answers were cut off at "
            "generate.max_new_tokens; their lengths and comparisons are those of torn texts."
        )
    return found
