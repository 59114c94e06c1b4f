"""Training steps of prlhf beside plain P-DPO and TRL: `python -m benchmarks.training --help`.

All variants do the same work in one process, alternating, after their first step was found to have
the same loss and gradient.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import training_page
from benchmarks.agreement import TOLERANCE, Agreement, compare, require
from benchmarks.clock import alternate, ceiling, peak_memory, ratio, timed_epoch
from benchmarks.command import common_options, run
from benchmarks.machine import describe
from benchmarks.models import LORA, load, vocabulary_of
from benchmarks.page import publish
from benchmarks.variants import Variant, our_variants
from benchmarks.workload import SHAPES, Shape, Workload, draw, shapes_named, with_reference
from prlhf.infra.errors import UserError
from prlhf.infra.progress import say
from prlhf.models.base import BaseModel, Encoder

CHECKED = 0.25
"""Gradients are compared on pairs of this share of the shape's lengths, the loss on all."""

QUICK = Shape("quick", 24, 8)


def measure(
    base: BaseModel,
    shapes: Sequence[Shape],
    *,
    rounds: int,
    pairs: int,
    batch: int,
    seed: int = 0,
    matrix: int | None = None,
) -> dict[str, Any]:
    """All variants at all shapes.

    Args:
        base: the frozen model.
        shapes: what pairs look like.
        rounds: timed passes over the pairs.
        pairs: pairs of each shape.
        batch: pairs of one optimiser step; divides `pairs`.
        seed: of the pairs.
        matrix: rows of the square matrices whose product is the ceiling; None for what suits.

    Raises:
        UserError: `pairs` are not whole batches, or a variant computes something else.
    """
    if pairs % batch:
        raise UserError(
            f"{pairs} pairs are no whole batches of {batch}", where="--pairs", fix="use a multiple"
        )
    top = ceiling(base.device, base.model.dtype, matrix)
    measured = [measure_shape(base, s, rounds, pairs, batch, top, seed) for s in shapes]
    return {
        "machine": describe(base),
        "settings": {
            "rounds": rounds,
            "pairs": pairs,
            "batch": batch,
            "lora": {"rank": LORA.r, **LORA.model_dump(exclude={"r"})},
            "seed": seed,
        },
        "ceiling_flops": top,
        "shapes": measured,
    }


def measure_shape(
    base: BaseModel,
    shape: Shape,
    rounds: int,
    pairs: int,
    batch: int,
    top: float,
    seed: int,
) -> dict[str, Any]:
    """All variants at one shape; `top` is the speed of a matrix product."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory)
        small = prepare(base, shape.scaled(CHECKED), 2, 2, seed, output)
        agreements = check(small[1], base.model.dtype, pairs=2)
        del small
        workload, variants = prepare(base, shape, pairs, batch, seed + 1, output)
        memory, losses = {}, {}
        for variant in variants:
            memory[variant.key], losses[variant.key] = peak_memory(variant.trainer)
        same_losses(variants, losses, base.model.dtype)
        seconds = _time(variants, rounds, shape.name, base.model.dtype)
        operations = count_operations(variants[0], pairs, batch)
    return {
        "name": shape.name,
        "prompt": shape.prompt,
        "response": shape.response,
        "tokens": workload.tokens(),
        "pairs": pairs,
        "operations": operations,
        "variants": [
            _row(v, seconds, memory, agreements, workload, operations, top) for v in variants
        ],
    }


def prepare(
    base: BaseModel, shape: Shape, pairs: int, batch: int, seed: int, output: Path
) -> tuple[Workload, list[Variant]]:
    """Pairs of a shape, and every way to train on them, ours first."""
    from benchmarks.against_trl import trl_variant

    encoder = Encoder(base.chat, *shape.longest)
    workload = with_reference(draw(shape, pairs, vocabulary_of(base), seed), base, encoder)
    variants = our_variants(base, workload, encoder, batch, output)
    return workload, [*variants, trl_variant(base, workload, batch, output)]


def check(variants: Sequence[Variant], dtype: torch.dtype, pairs: int) -> dict[str, Agreement]:
    """Compare the loss and gradient of every variant with those of the first.

    Raises:
        Disagreement: one differs by more than rounding.
    """
    ours = variants[0].loss_and_gradient(pairs)
    return {
        variant.key: compare(variant.name, ours, variant.loss_and_gradient(pairs), dtype)
        for variant in variants[1:]
    }


def same_losses(
    variants: Sequence[Variant], losses: Mapping[str, float], dtype: torch.dtype
) -> None:
    """Compare the mean loss of a whole pass with that of the first variant.

    Raises:
        Disagreement: one differs by more than rounding.
    """
    ours = losses[variants[0].key]
    for variant in variants:
        difference = abs(losses[variant.key] - ours) / max(abs(ours), 1e-6)
        require(variant.name, "loss", difference, TOLERANCE[dtype])


def _time(
    variants: Sequence[Variant], rounds: int, label: str, dtype: torch.dtype
) -> dict[str, list[float]]:
    losses: dict[str, float] = {}

    def task(variant: Variant) -> float:
        epoch = timed_epoch(variant.trainer)
        losses[variant.key] = epoch.loss
        same_losses([v for v in variants if v.key in losses], losses, dtype)
        return epoch.seconds

    tasks = {v.key: (lambda v=v: task(v)) for v in variants}
    return alternate(tasks, rounds, label)


def count_operations(ours: Variant, pairs: int, batch: int) -> int:
    """Floating-point operations of our own pass over the pairs, as PyTorch counts them.

    Matrix products and attention, forward and backward; no weight of the base model has a gradient.
    The least that is known to do the work, and so the numerator of every variant's utilisation.
    """
    # The fused kernels of attention are not all known to the counter; the plain one is made of
    # matrix products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for start in range(0, pairs, batch):
            ours.loss_and_gradient(batch, start)
    return int(counter.get_total_flops())


def _row(
    variant: Variant,
    seconds: Mapping[str, list[float]],
    memory: Mapping[str, int],
    agreements: Mapping[str, Agreement],
    workload: Workload,
    operations: int,
    top: float,
) -> dict[str, Any]:
    own = seconds[variant.key]
    median = statistics.median(own)
    agreement = agreements.get(variant.key)
    return {
        "key": variant.key,
        "name": variant.name,
        "seconds": own,
        "pairs_per_second": len(workload.pairs) / median,
        "tokens_per_second": workload.tokens() / median,
        "peak_bytes": memory[variant.key],
        "time_ratio": ratio(own, seconds["ours"]),
        "memory_ratio": memory[variant.key] / max(memory["ours"], 1),
        "utilisation": operations / median / top,
        "agreement": None if agreement is None else dataclasses.asdict(agreement),
    }


@click.command(context_settings={"show_default": True})
@click.option("--shapes", default="tldr,psoups,prism", help=f"Some of {', '.join(SHAPES)}.")
@click.option("--rounds", type=click.IntRange(min=1), default=2, help="Timed passes.")
@click.option("--pairs", type=click.IntRange(min=1), default=2, help="Pairs of each shape.")
@click.option("--batch", type=click.IntRange(min=1), default=2, help="Pairs of one step.")
@common_options
def main(
    shapes: str,
    rounds: int,
    pairs: int,
    batch: int,
    model: str | None,
    device: str | None,
    dtype: str,
    quick: bool,
    out: Path,
) -> None:
    """Compare training steps with the plain formulation and with TRL."""
    if quick:
        base = load("random:tiny", device="cpu", dtype="float32")
        result = measure(base, [QUICK], rounds=2, pairs=4, batch=2, matrix=128)
    else:
        base = load(model or "models/base", device=device, dtype=dtype)
        result = measure(base, shapes_named(shapes), rounds=rounds, pairs=pairs, batch=batch)
    text = training_page.text(result)
    say(text)
    if not quick:
        publish(out, "training", result, text, training_page.plot(result))


if __name__ == "__main__":
    run(main)
