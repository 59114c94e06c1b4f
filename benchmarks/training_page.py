"""The training benchmark's tables and plot."""

from __future__ import annotations

from typing import Any

from benchmarks.page import bars, caption, number, size, table, times
from prlhf.report.svg import Drawing


def text(result: dict[str, Any]) -> str:
    """A table for each shape, and where it was measured."""
    machine, settings = result["machine"], result["settings"]
    rest = (
        f"{settings['batch']} pairs a step, {settings['pairs']} pairs and {settings['rounds']} "
        f"rounds a shape, LoRA of rank {settings['lora']['rank']} on the attention projections. A "
        f"matrix product reaches {number(result['ceiling_flops'] / 1e9)} GFLOP/s here."
    )
    parts = [caption(machine, rest)]
    for shape in result["shapes"]:
        parts.append(f"**{_heading(shape)}**")
        rows = [
            [
                row["name"],
                number(row["pairs_per_second"]),
                number(row["tokens_per_second"]),
                times(row["time_ratio"]),
                size(row["peak_bytes"]),
                number(row["memory_ratio"]),
                f"{100 * row['utilisation']:.0f} %",
            ]
            for row in shape["variants"]
        ]
        header = ["", "pairs/s", "tokens/s", "time", "peak memory", "memory", "of the ceiling"]
        parts.append(table(header, rows))
    if machine["gpu"] is None:
        parts.append("On a GPU: not measured.")
    return "\n\n".join(parts)


def plot(result: dict[str, Any]) -> Drawing:
    """Time of a step by shape and variant, ours being 1."""
    groups = [
        (
            _heading(shape),
            [
                (row["name"], row["time_ratio"]["median"], number(row["time_ratio"]["median"]))
                for row in shape["variants"]
            ],
        )
        for shape in result["shapes"]
    ]
    return bars("Time of a training step, prlhf being 1 (less is better)", groups, "times")


def _heading(shape: dict[str, Any]) -> str:
    return f"{shape['name']}: prompts of {shape['prompt']} tokens, responses of {shape['response']}"
