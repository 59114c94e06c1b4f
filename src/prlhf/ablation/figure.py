"""A drawing of an ablation: each setting's difference to the baseline, with its interval."""

from __future__ import annotations

from markupsafe import Markup

from prlhf.ablation.results import Table
from prlhf.evaluation.svg import Drawing, Scale, clip, tick_label, ticks

WIDTH = 760
LEFT = 170
RIGHT = 40
TOP = 46
ROW = 34

# The drawing stands alone, so it brings the colours that the report's page has.
STYLE = """
svg { font: 13px ui-sans-serif, system-ui, sans-serif; background: #fff; --dot: #0a72b8; }
text { fill: #1b1f24; } .soft { fill: #59626d; }
.rule { stroke: #e1e3e6; } .zero { stroke: #59626d; stroke-dasharray: 4 4; }
.bar { stroke: var(--dot); stroke-width: 3; }
@media (prefers-color-scheme: dark) {
  svg { background: #181c21; --dot: #56aeec; } text { fill: #e8eaed; } .soft { fill: #a0a9b4; }
  .rule { stroke: #2e343c; } .zero { stroke: #a0a9b4; }
}
"""


def draw(table: Table) -> str:
    """The drawing as an SVG file."""
    baseline = table.ablation.baseline
    ends = [0.0]
    for row in table.rows:
        if row.difference is not None:
            ends += [100 * row.difference.value, *(100 * x for x in row.difference.interval or ())]
    margin = max(0.08 * (max(ends) - min(ends)), 1.0)
    scale = Scale(min(ends) - margin, max(ends) + margin, LEFT, WIDTH - RIGHT)
    bottom = TOP + ROW * len(table.rows)
    title = f"{table.ablation.title}: accuracy, points above or below {baseline}"
    drawing = Drawing(WIDTH, bottom + 34, title)
    drawing.parts.append(Markup("<style>{}</style>").format(Markup(STYLE)))
    drawing.text(LEFT, 20, title)
    for value in ticks(scale.low, scale.high, 6):
        drawing.line(scale(value), TOP - 10, scale(value), bottom)
        drawing.text(scale(value), bottom + 20, tick_label(value), kind="soft", anchor="middle")
    drawing.line(scale(0.0), TOP - 10, scale(0.0), bottom, kind="zero")
    for number, row in enumerate(table.rows):
        y = TOP + ROW * (number + 0.4)
        drawing.text(LEFT - 14, y + 4, clip(row.setting, 22), anchor="end")
        value = 0.0
        if row.difference is not None:
            value = 100 * row.difference.value
            if row.difference.interval is not None:
                low, high = (scale(100 * end) for end in row.difference.interval)
                drawing.line(low, y, high, y, kind="bar")
        elif row.setting != baseline:
            continue
        drawing.mark(0, scale(value), y, 5, fill="var(--dot)", tip=f"{row.setting}: {value:+.1f}")
    return f"{drawing.render()}\n"
