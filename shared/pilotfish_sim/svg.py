"""Charts as inline SVG: lines, steps and bars, coloured by classes that a page's style gives colours to."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Final

Point = tuple[float, float]
WIDTH: Final = 640
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 44
SERIES: Final = 6  # colours


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A series. ``steps``: flat until the next point. ``dots``: its points are shown. ``colour``: of the page's."""

    name: str
    points: Sequence[Point]
    colour: int
    steps: bool = False
    dots: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A point of its own; ``kind`` is a class of the page's style."""

    x: float
    y: float
    kind: str
    title: str


class _Plane:
    """From values to pixels. An axis begins at 0 and ends at a round number."""

    def __init__(self, most_x: float, most_y: float, *, width: int = WIDTH, height: int = HEIGHT) -> None:
        self.width, self.height = width, height
        self.ticks_x, self.ticks_y = _ticks(most_x), _ticks(most_y)
        self._most_x, self._most_y = self.ticks_x[-1], self.ticks_y[-1]

    def x(self, value: float) -> float:
        return LEFT + value / self._most_x * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self.height - BOTTOM - value / self._most_y * (self.height - TOP - BOTTOM)

    def frame(self, label_x: str, label_y: str) -> list[str]:
        parts = []
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        for tick in self.ticks_y:
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_shown(tick)}</text>')
        for tick in self.ticks_x:
            parts.append(f'<text x="{self.x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{_shown(tick)}</text>')
        middle = (LEFT + right) / 2
        parts.append(f'<text x="{middle:.1f}" y="{self.height - 8}" text-anchor="middle">{html.escape(label_x)}</text>')
        y = (TOP + bottom) / 2
        turned = f'<text transform="translate(12 {y:.1f}) rotate(-90)" text-anchor="middle">'
        return [*parts, f"{turned}{html.escape(label_y)}</text>"]


def lines(
    series: Sequence[Line], *, label_x: str, label_y: str, marks: Sequence[Mark] = (), title: str, most_y: float = 0.0
) -> str:
    """A chart of lines, with a legend. ``most_y``: the axis goes up to there at least."""
    points = [point for line in series for point in line.points] or [(0.0, 0.0)]
    plane = _Plane(max(x for x, _ in points), max(most_y, *(y for _, y in points)))
    parts = plane.frame(label_x, label_y)
    for line in series:
        path = _stepped(line.points) if line.steps else line.points
        coordinates = " ".join(f"{plane.x(x):.1f},{plane.y(y):.1f}" for x, y in path)
        parts.append(f'<polyline class="s{line.colour % SERIES}" points="{coordinates}"/>')
        if line.dots:
            parts += [
                f'<circle class="f{line.colour % SERIES}" cx="{plane.x(x):.1f}" cy="{plane.y(y):.1f}" r="3.5">'
                f"<title>{html.escape(line.name)}: {_shown(y)} at {_shown(x)}</title></circle>"
                for x, y in line.points
            ]
    parts += [
        f'<circle class="{mark.kind}" cx="{plane.x(mark.x):.1f}" cy="{plane.y(mark.y):.1f}" r="2.5">'
        f"<title>{html.escape(mark.title)}</title></circle>"
        for mark in marks
    ]
    return _svg(plane.width, plane.height, title, parts) + legend([(line.name, line.colour) for line in series])


def bars(values: Sequence[tuple[str, float, int]], *, unit: str, title: str) -> str:
    """A bar for each (name, value, colour), one under the other."""
    row, left, room = 26, 230, 130
    most = max((value for _, value, _ in values), default=0.0) or 1.0
    parts = []
    for place, (name, value, colour) in enumerate(values):
        y, length = place * row + 6, value / most * (WIDTH - left - room)
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(f'<rect class="f{colour % SERIES}" x="{left}" y="{y}" width="{length:.1f}" height="18" rx="2"/>')
        parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 13}">{_shown(value)} {html.escape(unit)}</text>')
    return _svg(WIDTH, row * len(values) + 8, title, parts)


def legend(names: Sequence[tuple[str, int]]) -> str:
    """Which colour is what."""
    entries = "".join(
        f'<li><span class="key b{colour % SERIES}"></span>{html.escape(name)}</li>' for name, colour in names
    )
    return f'<ul class="legend">{entries}</ul>'


def _svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    said = html.escape(title, quote=True)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'


def _stepped(points: Sequence[Point]) -> list[Point]:
    path: list[Point] = []
    for x, y in points:
        if path:
            path.append((x, path[-1][1]))
        path.append((x, y))
    return path


def _ticks(most: float) -> list[float]:
    """From 0 to a round number at or above ``most``, some five of them."""
    if not most > 0:
        return [0.0, 1.0]
    size = 10.0 ** math.floor(math.log10(most / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if most / (size * factor) <= 6)
    return [step * count for count in range(math.ceil(most / step - 1e-9) + 1)]


def _shown(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
