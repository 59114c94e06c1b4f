"""No number of a wrong computation: what a variant computes is compared before it is timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prlhf.infra.errors import UserError

TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}
"""Largest relative difference of a parameter's gradient (Frobenius norm) that rounding explains."""

NEGLIGIBLE = 1e-2
"""Gradients below this share of the largest are compared on that share's scale."""


class Disagreement(UserError):
    """A variant computes something else."""


@dataclass(frozen=True)
class Agreement:
    """How far a variant's first step is from ours: of the loss, and of its worst gradient."""

    loss: float
    gradient: float


def compare(
    name: str,
    ours: tuple[Tensor, Mapping[str, Tensor]],
    theirs: tuple[Tensor, Mapping[str, Tensor]],
    dtype: torch.dtype,
) -> Agreement:
    """Compare loss and gradient.

    Args:
        name: of the variant, for errors.
        ours, theirs: the loss, and the slope of each parameter. Where one of them has no user
            model, parameters are matched by what both have: the adapter.
        dtype: of the weights.

    Raises:
        Disagreement: they differ by more than rounding.
    """
    tolerance = TOLERANCE[dtype]
    loss = abs(float(ours[0]) - float(theirs[0])) / max(abs(float(ours[0])), 1e-6)
    require(name, "loss", loss, tolerance)
    wanted, found = _by_name(ours[1]), _by_name(theirs[1])
    adapter = {key for key in wanted if "lora_" in key}
    if not adapter or not adapter <= found.keys():
        raise Disagreement(f"{name} has no gradient for the adapter")
    largest = max(float(slope.norm()) for slope in wanted.values())
    if largest == 0:
        raise Disagreement(f"{name}: the gradient vanishes, and nothing can be compared")
    worst = 0.0
    for key in wanted.keys() & found.keys():
        scale = max(float(wanted[key].norm()), NEGLIGIBLE * largest)
        difference = float((wanted[key] - found[key]).norm()) / scale
        require(name, f"gradient of {key}", difference, tolerance)
        worst = max(worst, difference)
    return Agreement(loss, worst)


def require(name: str, what: str, difference: float, tolerance: float) -> None:
    """Refuse a relative difference beyond the tolerance.

    Raises:
        Disagreement: it is, or is not a number.
    """
    if not difference <= tolerance:
        raise Disagreement(
            f"{name}: its {what} differs from ours by {difference:.1e} (at most {tolerance:.0e}): "
            "nothing is measured"
        )


def _by_name(slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By parameter names that do not depend on the module around PEFT's."""
    return {key.removeprefix("lm."): slope for key, slope in slopes.items()}
