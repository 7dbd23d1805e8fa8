"""Charts are well-formed SVG, escape what users wrote, and put points where their values are."""

from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.detection.report.charts import (
    Line,
    bar_chart,
    heat_map,
    interval_chart,
    line_chart,
    reliability_chart,
    spark_line,
)

NASTY = '<script>alert(\'"&")</script>'
SVG = "{http://www.w3.org/2000/svg}"


def parsed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{html}</div>")


def polyline(element: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in element.attrib["points"].split())]


def every_chart(text: str) -> list[str]:
    matrix = np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0]])
    bins = np.array([0.0, 0.5, 1.0])
    return [
        line_chart([Line([0, 1], [1, 0], "s1", text)], title=text, x_label=text, y_label=text, mark=(0.7, text)),
        bar_chart([(text, 0.4, text)], title=text),
        interval_chart([(text, -0.1, 0.0, 0.2, text)], title=text),
        reliability_chart(bins, np.array([np.nan, 0.7]), np.array([np.nan, 0.6]), np.array([0, 4]), title=text),
        heat_map(matrix, matrix / 4, [text, "b", "nothing"], title=text),
    ]


@pytest.mark.parametrize("number", range(5))
def test_charts_are_well_formed_and_show_what_users_wrote_as_text(number: int) -> None:
    root = parsed(every_chart(NASTY)[number])
    tags = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert "script" not in tags
    assert root.find(f".//{SVG}title").text == NASTY  # type: ignore[union-attr]


def test_lines_run_through_their_points() -> None:
    html = line_chart([Line([0, 0.5, 1], [1, 0.5, 0], "s1")], title="t", x_label="x", y_label="y")
    (first, middle, last) = polyline(parsed(html).find(f".//{SVG}polyline"))  # type: ignore[arg-type]
    assert first[0] < last[0]
    assert first[1] < last[1]  # y grows downwards
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_bars_are_as_long_as_their_values(values: list[float]) -> None:
    root = parsed(bar_chart([(str(i), value, "") for i, value in enumerate(values)], title="t", most=1.0))
    lengths = [float(rect.attrib["width"]) for rect in root.iter(f"{SVG}rect")]
    assert lengths == pytest.approx([max(190 * value, 1) for value in values], abs=0.06)


def test_intervals_are_filled_only_where_they_leave_out_zero() -> None:
    rows = [("a", 0.1, 0.2, 0.3, ""), ("b", -0.1, 0.1, 0.3, ""), ("c", -0.3, -0.2, -0.1, "")]
    dots = list(parsed(interval_chart(rows, title="t")).iter(f"{SVG}circle"))
    assert ["unclear" in dot.attrib["class"] for dot in dots] == [False, True, False]
    places = [float(dot.attrib["cx"]) for dot in dots]
    assert places[0] - places[1] == pytest.approx((places[1] - places[2]) / 3, abs=0.2)


def test_differences_of_zero_can_be_drawn() -> None:
    parsed(interval_chart([("a", 0.0, 0.0, 0.0, "0")], title="t"))


def test_a_heat_map_writes_the_counts_that_are_there() -> None:
    matrix = np.array([[12, 3, 0], [0, 7, 1], [2, 0, 0]])
    root = parsed(heat_map(matrix, matrix / matrix.sum(axis=1, keepdims=True), ["a", "b", "nothing"], title="t"))
    cells = [text.text for text in root.iter(f"{SVG}text") if text.attrib.get("class", "").startswith("value")]
    assert cells == ["12", "3", "7", "1", "2"]
    wrong = [rect for rect in root.iter(f"{SVG}rect") if rect.attrib["class"] == "heat wrong"]
    assert len(wrong) == 3


def test_a_spark_line_keeps_to_its_box() -> None:
    points = polyline(
        parsed(spark_line(np.linspace(1, 0, 101)).replace("<svg", f'<svg xmlns="{SVG[1:-1]}"')).find(f".//{SVG}polyline")
    )  # type: ignore[arg-type]
    assert points[0] == (0, 2)
    assert points[-1] == (80, 22)
