"""A small drawing kit: SVG to be put into a page whose style sheet sets the colours.

Colours are CSS values such as `var(--m1)`, so that one drawing serves light and dark schemes and
print. All text is escaped here, and numbers are rounded, so that equal inputs give equal bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """An SVG of `width` x `height` user units; `title` is for those who cannot see it."""

    width: float
    height: float
    title: str
    parts: list[Markup] = field(default_factory=list)

    def line(self, x1: float, y1: float, x2: float, y2: float, *, kind: str = "rule") -> None:
        """A straight line of CSS class `kind`."""
        self._add("line", None, class_=kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def rect(
        self, x: float, y: float, width: float, height: float, *, radius: float = 0, **look: Any
    ) -> None:
        """A rectangle; its `look` is as in `mark`."""
        width, height = max(width, 0), max(height, 0)
        style, tip = _look(**look)
        self._add("rect", tip, x=x, y=y, width=width, height=height, rx=radius, style=style)

    def mark(self, shape: int, x: float, y: float, size: float, **look: Any) -> None:
        """A point; `shape` 0 is a dot, and 1 to 5 are other shapes of about the same area.

        Args:
            shape: Taken modulo 6.
            x, y: Its centre.
            size: The dot's radius.
            look: `fill`, a CSS colour; `opacity`, by default 1; `tip`, a text that is shown when
                the pointer rests on it.
        """
        style, tip = _look(**look)
        if shape % 6 == 0:
            self._add("circle", tip, class_="pt", cx=x, cy=y, r=size, style=style)
            return
        outline = _SHAPES[shape % 6 - 1]
        corners = " ".join(f"{_n(x + size * dx)},{_n(y + size * dy)}" for dx, dy in outline)
        self._add("polygon", tip, class_="pt", points=corners, style=style)

    def path(
        self, points: Sequence[tuple[float, float]], *, stroke: str, opacity: float, width: float
    ) -> None:
        """A polyline through `points`."""
        data = "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)
        style = f"stroke:{stroke};fill:none;stroke-width:{_n(width)};opacity:{_n(opacity)}"
        self._add("path", None, class_="line", d=data, style=style)

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
        style = f"fill:{fill}" if fill else ""
        self._add("text", content, class_=kind, x=x, y=y, text_anchor=anchor, style=style)

    def _add(self, tag: str, content: str | None, **attributes: str | float) -> None:
        """Append an element, without the attributes whose value is empty."""
        pairs = [
            Markup(' {}="{}"').format(
                name.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _n(value)
            )
            for name, value in attributes.items()
            if value != ""
        ]
        end = Markup("/>") if content is None else Markup(">{}</{}>").format(content, tag)
        self.parts.append(Markup("<{}{}{}").format(tag, Markup("").join(pairs), end))

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


def _look(*, fill: str, opacity: float = 1.0, tip: str = "") -> tuple[str, Markup]:
    """The style of a shape, and its content."""
    style = f"fill:{fill}" if opacity == 1.0 else f"fill:{fill};opacity:{_n(opacity)}"
    return style, Markup("<title>{}</title>").format(tip) if tip else Markup("")


def _n(value: float) -> str:
    """A coordinate with one decimal at most (two below 2, for opacities and fine strokes)."""
    text = f"{value:.2f}" if abs(value) < 2 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def abridged(text: str, length: int = 28) -> str:
    """At most `length` characters, with an ellipsis where some are missing."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= length else flat[: length - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
