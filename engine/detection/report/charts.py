"""Charts as SVG text. Colours and type come from the page's style sheet, so that they follow it into night and print."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart; `style` is its class in the style sheet: s1 to s5, `faint`, `ideal`."""

    xs: Sequence[float] | np.ndarray
    ys: Sequence[float] | np.ndarray
    style: str
    label: str = ""


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] = (0, 1),
    mark: tuple[float, str] | None = None,
) -> str:
    """Lines over [0, 1] in height, each with its label in a legend; `mark` is an x and the text beside it."""
    left, right, top, bottom = 52, 500, 14, 270
    low, high = x_range
    span = (high - low) or 1.0

    def place(xs: Sequence[float] | np.ndarray, ys: Sequence[float] | np.ndarray) -> str:
        points = zip(np.asarray(xs, float), np.asarray(ys, float), strict=True)
        return " ".join(f"{left + (x - low) / span * (right - left):.1f},{bottom - y * (bottom - top):.1f}" for x, y in points)

    parts = _grid(left, right, top, bottom, x_ticks=[low + span * i / 5 for i in range(6)], x_range=x_range)
    parts += [f'<polyline class="line {line.style}" points="{place(line.xs, line.ys)}"/>' for line in lines]
    if mark is not None:
        x = left + (mark[0] - low) / span * (right - left)
        anchor, shift = ("end", -6) if x > (left + right) / 2 else ("start", 6)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x + shift:.1f}" y="{bottom - 8}" text-anchor="{anchor}">{escape(mark[1])}</text>')
    parts.append(_axis_labels(left, right, top, bottom, x_label, y_label))
    return _svg(512, 318, parts, title) + legend(lines)


def legend(lines: Sequence[Line]) -> str:
    """What the lines are, as HTML: it wraps on a narrow page."""
    keys = [
        '<li><svg class="key" viewBox="0 0 22 10" aria-hidden="true">'
        f'<line class="line {line.style}" x1="1" x2="21" y1="5" y2="5"/></svg>{escape(line.label)}</li>'
        for line in lines
        if line.label
    ]
    return f'<ul class="legend">{"".join(keys)}</ul>'


def bar_chart(rows: Sequence[tuple[str, float, str]], *, title: str, most: float | None = None, style: str = "b1") -> str:
    """Horizontal bars of (label, value, the text at its end), scaled to `most` or to the largest."""
    left, right, step = 136, 326, 26
    scale = most or max((value for _, value, _ in rows), default=0) or 1.0
    parts = []
    for i, (label, value, text) in enumerate(rows):
        y = 6 + i * step
        length = max(0.0, value) / scale * (right - left)
        parts.append(f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{escape(_cut(label, 19))}</text>')
        parts.append(f'<rect class="bar {style}" x="{left}" y="{y + 2}" width="{max(length, 1):.1f}" height="16" rx="2"/>')
        parts.append(f'<text class="value" x="{left + max(length, 1) + 6:.1f}" y="{y + 14}">{escape(text)}</text>')
    return _svg(436, 12 + step * len(rows), parts, title)


def interval_chart(rows: Sequence[tuple[str, float, float, float, str]], *, title: str) -> str:
    """Differences as dots with their intervals about a line at zero: (label, low, value, high, text)."""
    left, right, step = 62, 362, 24
    reach = max([abs(edge) for _, low, value, high, _ in rows for edge in (low, value, high)] + [1e-3]) * 1.05
    middle, bottom = (left + right) / 2, 8 + step * len(rows)

    def place(value: float) -> float:
        return middle + value / reach * (right - left) / 2

    parts = [f'<line class="grid" x1="{middle}" x2="{middle}" y1="4" y2="{bottom}"/>']
    for i, (label, low, value, high, text) in enumerate(rows):
        y = 8 + i * step + step / 2
        style = "clear" if low > 0 or high < 0 else "unclear"
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<line class="whisker {style}" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot {style}" cx="{place(value):.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<text class="value" x="{right + 12}" y="{y + 4}">{escape(text)}</text>')
    for value in (-reach / 1.05, 0.0, reach / 1.05):
        tick = f"{value:+.3f}".replace("-", "−") if value else "0"
        parts.append(f'<text class="tick" x="{place(value):.1f}" y="{bottom + 16}" text-anchor="middle">{tick}</text>')
    return _svg(436, bottom + 24, parts, title)


def reliability_chart(
    edges: np.ndarray, confidence: np.ndarray, accuracy: np.ndarray, counts: np.ndarray, *, title: str
) -> str:
    """The share that is right in each bin of scores as a bar, beside the line where both are equal; NaN bins are left out."""
    left, right, top, bottom = 52, 500, 14, 270
    width, height = right - left, bottom - top
    parts = _grid(left, right, top, bottom, x_ticks=[0, 0.2, 0.4, 0.6, 0.8, 1], x_range=(0, 1))
    for low, high, share, count in zip(edges[:-1], edges[1:], accuracy, counts, strict=True):
        if count:
            x, tall = left + low * width, max(share * height, 1)
            parts.append(
                f'<rect class="bar b2" x="{x + 1.5:.1f}" y="{bottom - tall:.1f}" width="{(high - low) * width - 3:.1f}" '
                f'height="{tall:.1f}"><title>{count} detections, {share:.0%} right</title></rect>'
            )
    parts.append(f'<line class="line ideal" x1="{left}" y1="{bottom}" x2="{right}" y2="{top}"/>')
    for x, y in zip(confidence, accuracy, strict=True):
        if np.isfinite(x):
            parts.append(f'<circle class="dot unclear" cx="{left + x * width:.1f}" cy="{bottom - y * height:.1f}" r="3.5"/>')
    parts.append(_axis_labels(left, right, top, bottom, "score", "share that is right"))
    lines = [Line([], [], "ideal", "as often right as its score says")]
    return _svg(512, 318, parts, title) + legend(lines)


def heat_map(matrix: np.ndarray, shares: np.ndarray, names: Sequence[str], *, title: str) -> str:
    """A confusion matrix (N, N) of counts, true class by predicted; what is 0 is left empty.

    Args:
        shares: (N, N) how dark a cell is, 0 to 1.
        names: of the rows and columns.
    """
    count = len(names)
    cell = min(56, max(20, 420 // count))
    font = 12 if cell >= 40 else 10
    left = 12 + round(0.56 * font * max((len(_cut(name, 20)) for name in names), default=0)) + 24
    top = left - 14 if cell < 56 or max(map(len, names)) > 8 else 46
    turned = top != 46
    parts = [
        f'<text class="axis" x="{left + count * cell / 2}" y="12" text-anchor="middle">predicted</text>',
        f'<text class="axis" transform="translate(12 {top + count * cell / 2}) rotate(-90)" text-anchor="middle">true</text>',
    ]
    for i, name in enumerate(names):
        middle = (i + 0.5) * cell
        text = escape(_cut(name, 20))
        parts.append(f'<text font-size="{font}" x="{left - 6}" y="{top + middle + 4}" text-anchor="end">{text}</text>')
        if turned:
            where = f'transform="translate({left + middle + 4} {top - 6}) rotate(-90)" text-anchor="start"'
        else:
            where = f'x="{left + middle}" y="{top - 8}" text-anchor="middle"'
        parts.append(f'<text font-size="{font}" {where}>{text}</text>')
    for i, j in np.argwhere(matrix > 0).tolist():
        share = float(shares[i, j])
        style = "right" if i == j else "wrong"
        x, y = left + j * cell, top + i * cell
        parts.append(
            f'<rect class="heat {style}" x="{x}" y="{y}" width="{cell}" height="{cell}" '
            f'fill-opacity="{0.08 + 0.92 * share:.2f}">'
            f"<title>{escape(names[i])} taken for {escape(names[j])}: {matrix[i, j]} ({share:.0%})</title></rect>"
        )
        if cell >= 34 or count <= 13:
            ink = "on-dark" if share > 0.55 else ""
            parts.append(
                f'<text class="value {ink}" font-size="{font}" x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle">'
                f"{matrix[i, j]}</text>"
            )
    side = count * cell
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{side}" height="{side}"/>')
    return _svg(left + side + 8, top + side + 8, parts, title)


def spark_line(ys: np.ndarray) -> str:
    """A small curve over [0, 1], for a table."""
    step = max(1, len(ys) // 25)
    points = " ".join(f"{80 * i / (len(ys) - 1):.0f},{22 - 20 * ys[i]:.1f}" for i in range(0, len(ys), step))
    return (
        '<svg class="spark" viewBox="0 0 80 24" aria-hidden="true"><line class="grid" x1="0" x2="80" y1="22.5" y2="22.5"/>'
        f'<polyline class="line s1" points="{points}"/></svg>'
    )


def _grid(
    left: float, right: float, top: float, bottom: float, *, x_ticks: Sequence[float], x_range: tuple[float, float]
) -> list[str]:
    parts = []
    low, high = x_range
    for value in (0, 0.2, 0.4, 0.6, 0.8, 1):
        y = bottom - value * (bottom - top)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in x_ticks:
        x = left + (value - low) / ((high - low) or 1.0) * (right - left)
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{value:.3g}</text>')
    return parts


def _axis_labels(left: float, right: float, top: float, bottom: float, x_label: str, y_label: str) -> str:
    return (
        f'<text class="axis" x="{(left + right) / 2}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text class="axis" transform="translate(14 {(top + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width:.0f}px" role="img"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
