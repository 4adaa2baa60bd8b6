"""Latency against load as an SVG: a panel for each percentile, a line for each peer."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

#: Peer, then (load from 0 to 1, microseconds).
Lines = Mapping[str, Sequence[tuple[float, float]]]

WIDTH, HEIGHT, LEFT, TOP, GAP = 380, 260, 60, 40, 70
#: Told apart by the colour-blind too.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def decades(lines: Sequence[Lines]) -> tuple[int, int]:
    """The powers of ten that enclose all values."""
    all_of_them = [y for panel in lines for points in panel.values() for _, y in points]
    bottom = math.floor(math.log10(min(all_of_them)))
    return bottom, max(bottom + 1, math.ceil(math.log10(max(all_of_them))))


def drawn(panels: Mapping[str, Lines], below: str) -> str:
    """The whole picture; `below` says what the axis of the load is."""
    bottom, top = decades(list(panels.values()))
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    width = LEFT + len(panels) * (WIDTH + GAP)
    height = TOP + HEIGHT + 70
    body: list[str] = []
    for number, (title, lines) in enumerate(panels.items()):
        x = LEFT + number * (WIDTH + GAP)
        body += _axes(x, title, below, bottom, top)
        for name, points in lines.items():
            body.append(_path(x, points, COLOURS[names.index(name) % len(COLOURS)], bottom, top))
    for number, name in enumerate(names):
        x, y = LEFT + 110 * number, height - 12
        colour = COLOURS[number % len(COLOURS)]
        body.append(f'<path d="M{x} {y - 4}h18" stroke="{colour}" stroke-width="3"/>')
        body.append(f'<text x="{x + 23}" y="{y}">{escape(name)}</text>')
    return "\n".join((_head(width, height), *body, "</svg>", ""))


def _head(width: int, height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12" fill="#222">\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
    )


def _axes(x: int, title: str, below: str, bottom: int, top: int) -> Iterator[str]:
    yield f'<text x="{x}" y="{TOP - 16}" font-weight="bold">{escape(title)}</text>'
    for power in range(bottom, top + 1):
        y = _y(10.0**power, bottom, top)
        yield f'<path d="M{x} {y:.1f}h{WIDTH}" stroke="#ddd"/>'
        label = f"{10**power / 1e6:g} s" if power >= 6 else f"{10**power / 1e3:g} ms"
        yield f'<text x="{x - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    for percent in range(0, 101, 20):
        at = x + WIDTH * percent / 100
        yield f'<text x="{at:.1f}" y="{TOP + HEIGHT + 16}" text-anchor="middle">{percent} %</text>'
    middle = x + WIDTH / 2
    yield f'<text x="{middle}" y="{TOP + HEIGHT + 34}" text-anchor="middle">{escape(below)}</text>'


def _path(x: int, points: Sequence[tuple[float, float]], colour: str, bottom: int, top: int) -> str:
    at = " ".join(f"{x + WIDTH * load:.1f},{_y(value, bottom, top):.1f}" for load, value in points)
    return f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _y(value: float, bottom: int, top: int) -> float:
    return TOP + HEIGHT * (top - math.log10(value)) / (top - bottom)
