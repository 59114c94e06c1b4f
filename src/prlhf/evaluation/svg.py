"""A small drawing kit: SVG for inlining into a page whose style sheet owns the colours.

Shapes take CSS values such as `var(--m1)` for their colours, so that one drawing serves light and
dark schemes and print. All text is escaped here, and numbers are rounded, so that equal inputs give
equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Scale:
    """Maps data in [low, high] to pixels in [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def tick_label(value: float) -> str:
    """A tick's number, as short as it is exact, with a true minus sign."""
    return f"{value:.10g}".replace("-", "\N{MINUS SIGN}")


@dataclass
class Drawing:
    """An SVG under construction.

    Attributes:
        width: Of the view box, in user units; the page scales it.
        height: Of the view box.
        title: What the drawing shows, for those who cannot see it.
    """

    width: float
    height: float
    title: str
    parts: list[Markup] = field(default_factory=list)

    def line(
        self, x1: float, y1: float, x2: float, y2: float, *, kind: str = "rule", stroke: str = ""
    ) -> None:
        """A straight line of CSS class `kind`."""
        style = Markup(' style="stroke:{}"').format(stroke) if stroke else ""
        self.parts.append(
            Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"{}/>').format(
                kind, _n(x1), _n(y1), _n(x2), _n(y2), style
            )
        )

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        fill: str,
        opacity: float = 1.0,
        radius: float = 0,
        tip: str = "",
    ) -> None:
        """A filled rectangle; `tip` shows when the pointer rests on it."""
        place = (_n(x), _n(y), _n(max(width, 0)), _n(height), _n(radius))
        self.parts.append(
            Markup(
                '<rect x="{}" y="{}" width="{}" height="{}" rx="{}" style="{}">{}</rect>'
            ).format(*place, _fill(fill, opacity), _tip(tip))
        )

    def mark(
        self,
        shape: int,
        x: float,
        y: float,
        size: float,
        *,
        fill: str,
        opacity: float = 1.0,
        tip: str = "",
    ) -> None:
        """A point; `shape` 0 is a dot, and 1 to 5 are other shapes of about the same area."""
        style = _fill(fill, opacity)
        if shape % 6 == 0:
            self.parts.append(
                Markup('<circle class="pt" cx="{}" cy="{}" r="{}" style="{}">{}</circle>').format(
                    _n(x), _n(y), _n(size), style, _tip(tip)
                )
            )
            return
        outline = _SHAPES[shape % 6 - 1]
        corners = " ".join(f"{_n(x + size * dx)},{_n(y + size * dy)}" for dx, dy in outline)
        self.parts.append(
            Markup('<polygon class="pt" points="{}" style="{}">{}</polygon>').format(
                corners, style, _tip(tip)
            )
        )

    def path(
        self,
        points: Sequence[tuple[float, float]],
        *,
        stroke: str = "none",
        fill: str = "none",
        opacity: float = 1.0,
        width: float = 2.0,
        dashed: bool = False,
        close: bool = False,
    ) -> None:
        """A polyline through `points`, or the area that it encloses."""
        if not points:
            return
        data = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points) + ("Z" if close else "")
        style = f"stroke:{stroke};fill:{fill};stroke-width:{_n(width)};opacity:{_n(opacity)}"
        self.parts.append(
            Markup('<path class="line" d="{}" style="{}"{}/>').format(
                data, style, Markup(' stroke-dasharray="4 4"') if dashed else ""
            )
        )

    def text(
        self,
        x: float,
        y: float,
        content: str,
        *,
        kind: str = "label",
        anchor: str = "start",
        fill: str = "",
    ) -> None:
        """Text of CSS class `kind`, its baseline at `y`."""
        style = Markup(' style="fill:{}"').format(fill) if fill else ""
        self.parts.append(
            Markup('<text class="{}" x="{}" y="{}" text-anchor="{}"{}>{}</text>').format(
                kind, _n(x), _n(y), anchor, style, content
            )
        )

    def render(self) -> Markup:
        """The finished element."""
        return Markup(
            '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" '
            'xmlns="http://www.w3.org/2000/svg">{}</svg>'
        ).format(_n(self.width), _n(self.height), self.title, Markup("").join(self.parts))


def _polygon(corners: int, turn: float, size: float) -> list[tuple[float, float]]:
    angles = [turn + 2 * math.pi * i / corners for i in range(corners)]
    return [(size * math.cos(a), size * math.sin(a)) for a in angles]


_SHAPES = (
    _polygon(4, math.pi / 4, 1.25),
    _polygon(3, -math.pi / 2, 1.45),
    _polygon(4, 0, 1.35),
    _polygon(3, math.pi / 2, 1.45),
    _polygon(6, 0, 1.15),
)


def _fill(fill: str, opacity: float) -> str:
    return f"fill:{fill}" if opacity == 1.0 else f"fill:{fill};opacity:{_n(opacity)}"


def _tip(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _n(value: float) -> str:
    """A coordinate with one decimal at most (two below 2, for opacities and fine strokes)."""
    text = f"{value:.2f}" if abs(value) < 2 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def clip(text: str, length: int = 28) -> str:
    """At most `length` characters, with an ellipsis where some are missing."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
