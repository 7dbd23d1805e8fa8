"""The report's sections of one kind of result, as HTML. All text that comes from users is escaped here."""

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

from engine.detection.report import charts
from engine.detection.report.charts import Line
from engine.detection.report.comparison import Comparison
from engine.detection.report.figures import RECALLS, ClassFigures, Figures
from engine.detection.report.matching import Outcome, Rows
from engine.detection.report.wording import (
    ERROR_NAMES,
    OVERLAP,
    count,
    findings,
    lean,
    main_error,
    meaning,
    number,
    signed,
    verdict,
)
from engine.detection.report.worst import WorstImage

_MOST_CLASSES_DRAWN = 20
_MOST_LINES = 5


def sections_of(
    figures: Figures, worst: Sequence[WorstImage], *, comparison: Comparison | None, against: str, drawn: bool
) -> list[tuple[str, str, str]]:
    """(anchor, title, HTML) of each section.

    Args:
        against: the name of what is compared with.
        drawn: whether there was a folder of images to draw from.
    """
    parts = [
        ("short", "In short", _short(figures, comparison, against)),
        ("numbers", "The numbers", _numbers(figures)),
    ]
    if comparison is not None and comparison.differences:
        parts.append(("difference", f"Difference to {against}", _difference(comparison, against)))
    parts += [
        ("classes", "Classes", _classes(figures)),
        ("curves", "Precision and recall", _curves(figures)),
        ("threshold", "Score threshold", _threshold(figures)),
        ("sizes", "Object sizes", _sizes(figures)),
    ]
    if figures.errors is not None:
        parts.append(("errors", "Kinds of error", _errors(figures)))
    if figures.confusion is not None:
        parts.append(("confusion", "Confusion", _confusion(figures)))
    parts.append(("calibration", "Calibration", _calibration(figures)))
    parts.append(("worst", "Worst images", _worst(figures, worst, drawn=drawn)))
    return [(f"{figures.kind}-{anchor}", title, html) for anchor, title, html in parts]


def _short(figures: Figures, comparison: Comparison | None, against: str) -> str:
    main = [name for name in ("AP", "AP50", "AP75") if name in figures.stats] or list(figures.stats)[:3]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{number(figures.stats[name])}</dd></div>" for name in main)
    items = "".join(f"<li>{escape(text)}</li>" for text in findings(figures, comparison, against))
    return f'<dl class="tiles">{tiles}</dl><ul class="findings">{items}</ul>'


def _numbers(figures: Figures) -> str:
    rows = [[escape(name), escape(meaning(name, figures.kind)), number(value)] for name, value in figures.stats.items()]
    crowds = f" {count(figures.crowds, 'crowd region')} left out of account." if figures.crowds else ""
    caption = (
        f"COCO's numbers for {count(figures.objects, 'object')} and {count(figures.detections, 'detection')}.{crowds} "
        "A dash: there is nothing of the kind to find."
    )
    return _table(["", "what it is", "value"], rows, text_columns=2, caption=caption)


def _classes(figures: Figures) -> str:
    rows = [_class_row(figure) for figure in figures.classes]
    empty = [figure for figure in figures.classes if not figure.objects]
    caption = (
        f"The best AP first. The curve is precision over recall at {OVERLAP[figures.kind]} 0.5: one that ends early misses "
        "objects, one that sinks early has confident false detections. F1 is the best that a score threshold gives, and that "
        "threshold. The AP of a class with a few dozen objects is rough."
    )
    if empty:
        caption += (
            f" {count(len(empty), 'class has', 'classes have')} nothing to find and no AP; false detections of "
            f"{'it' if len(empty) == 1 else 'them'} cost nothing in AP."
        )
    heads = ["class", "AP", "AP50", "AP75", "AR", "threshold", "F1", "objects", "images", "detections", "curve"]
    return _table(heads, rows, text_columns=1, caption=caption, sortable=True)


def _class_row(figure: ClassFigures) -> list[str]:
    name = escape(figure.name)
    if not figure.objects:
        name += ' <span class="note">nothing to find</span>'
    scores = [number(value) for value in (figure.ap, figure.ap50, figure.ap75, figure.recall)]
    amounts = [f"{value:,}" for value in (figure.objects, figure.images, figure.detections)]
    best = [f"{figure.threshold:.2f}", f"{figure.f1:.3f}"] if figure.f1 else ["–", "–"]
    return [name, *scores, *best, *amounts, charts.spark_line(figure.curve) if figure.ap > -1 else ""]


def _curves(figures: Figures) -> str:
    overlap = OVERLAP[figures.kind]
    styles = {0.5: "s1", 0.75: "s2", 0.9: "s3"}
    lines = [Line(RECALLS, curve, "faint") for iou, curve in figures.curves.items() if iou not in styles]
    lines += [
        Line(RECALLS, figures.curves[iou], style, f"{overlap} {iou:.2f}: AP {number(float(figures.curves[iou].mean()))}")
        for iou, style in styles.items()
        if iou in figures.curves
    ]
    html = _figure(
        charts.line_chart(lines, title="Precision over recall", x_label="recall", y_label="precision"),
        f"Mean over the classes, at each {overlap} from 0.50 (top) to 0.95. The area under a line is its AP. Lines far "
        "apart: objects are found, but not placed exactly. All ending early: objects are missed.",
    )
    scored = [figure for figure in figures.classes if figure.ap > -1]
    if len(scored) > 1:
        chosen = sorted(scored, key=lambda figure: figure.ap50)[:_MOST_LINES]
        which = "Each class" if len(chosen) == len(scored) else f"The {len(chosen)} classes of the lowest AP50"
        lines = [Line(RECALLS, c.curve, f"s{i}", f"{c.name}: AP50 {number(c.ap50)}") for i, c in enumerate(chosen, start=1)]
        chart = charts.line_chart(lines, title="Precision over recall by class", x_label="recall", y_label="precision")
        html += _figure(chart, f"{which}, at {overlap} 0.5.")
    return f'<div class="pair">{html}</div>'


def _threshold(figures: Figures) -> str:
    by = figures.thresholds
    lines = [Line(by.thresholds, by.precision, "s2", "precision"), Line(by.thresholds, by.recall, "s1", "recall")]
    lines.append(Line(by.thresholds, by.f1, "s3", "F1"))
    chart = charts.line_chart(
        lines,
        title="Precision, recall and F1 over the score threshold",
        x_label="detections of this score or more are kept",
        y_label="share",
        x_range=(float(by.thresholds[0]), float(by.thresholds[-1])),
        mark=(figures.threshold, f"{figures.threshold:.2g}"),
    )
    which = "where F1 is highest" if figures.threshold == by.best else "which was asked for"
    return _figure(
        chart,
        f"All classes together, {OVERLAP[figures.kind]} 0.5. The dashed line is the threshold {which}; the confusion matrix "
        "and the worst images below use it. To miss less, go left; to be wrong less often, go right.",
    )


def _sizes(figures: Figures) -> str:
    rows = [
        [escape(size.name), _extent(size.low, size.high), f"{size.objects:,}", number(size.ap), number(size.recall)]
        for size in figures.sizes
    ]
    bars = [(f"{size.name} ({size.objects:,})", max(size.ap, 0.0), number(size.ap)) for size in figures.sizes]
    caption = (
        "AP by the area of the object. Small objects are usually the hardest: a higher input resolution helps them most. "
        "Few objects of a size make its AP rough."
    )
    table = _table(["size", "side, pixels", "objects", "AP", "AR"], rows, text_columns=2)
    return _figure(charts.bar_chart(bars, title="AP by object size", most=1.0), caption) + table


def _extent(low: float, high: float) -> str:
    """A range of areas as the sides of squares."""
    if high >= 1e9:
        return f"over {low**0.5:.0f}"
    return f"up to {high**0.5:.0f}" if low <= 0 else f"{low**0.5:.0f} to {high**0.5:.0f}"


def _errors(figures: Figures) -> str:
    errors = figures.errors
    assert errors is not None
    kinds = sorted(errors.gains, key=lambda kind: -errors.gains[kind])
    bars = [(ERROR_NAMES[kind], errors.gains[kind], f"{errors.gains[kind]:.3f}  ({errors.counts[kind]:,})") for kind in kinds]
    advice = main_error(errors) if figures.detections else "There is no detection: all objects are missed."
    caption = (
        f"{advice} A bar is the AP50 gained (of {number(errors.ap50)} now) if this kind alone were put right; in "
        "brackets how many there are, at any score. Imprecise: IoU 0.1 to 0.5. Leaving out all false detections would gain "
        f"{number(errors.false_positives)}, finding all missed objects {number(errors.false_negatives)}. The split is that of "
        "TIDE (Bolya et al. 2020); gains do not add up."
    )
    return _figure(charts.bar_chart(bars, title="AP50 lost by kind of error", style="b3"), caption)


def _confusion(figures: Figures) -> str:
    matrix = figures.confusion
    assert matrix is not None
    names = figures.class_names
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    order = np.arange(len(names))
    which = "Rows are the truth, columns what was predicted"
    if len(names) > _MOST_CLASSES_DRAWN:
        amount = between.sum(axis=0) + between.sum(axis=1)
        order = np.sort(np.argsort(-amount, kind="stable")[:_MOST_CLASSES_DRAWN])
        which = f"The {_MOST_CLASSES_DRAWN} classes most often confused. {which}"
    kept = [*order.tolist(), len(names)]
    shown = [*(names[i] for i in order), "nothing"]
    chosen = np.ix_(kept, kept)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    chart = charts.heat_map(matrix[chosen], shares[chosen], shown, title="Confusion matrix")
    caption = (
        f"{which}, for detections that score {figures.threshold:.2g} or more and lie on an object with IoU 0.5 or more. The "
        "last column counts missed objects, the last row detections where no object is. Shades are shares of a row."
    )
    html = _figure(chart, caption)
    pairs = sorted(zip(*np.nonzero(between), strict=True), key=lambda pair: (-between[pair], -shares[pair]))[:10]
    rows = [[escape(names[i]), escape(names[j]), f"{between[i, j]:,}", _share(shares[i, j])] for i, j in pairs]
    if not rows:
        return html + "<p>No object was taken for one of another class.</p>" if len(names) > 1 else html
    return html + _table(["true", "predicted", "count", "of the true class"], rows, text_columns=2)


def _share(value: float) -> str:
    return "&lt;1%" if value < 0.005 else f"{value:.0%}"


def _calibration(figures: Figures) -> str:
    found = figures.calibration
    if found is None:
        reason = "there are no detections" if not figures.detections else "the scores are not between 0 and 1"
        return f"<p>Not shown: {reason}.</p>"
    chart = charts.reliability_chart(
        found.edges, found.confidence, found.accuracy, found.counts, title="Reliability of the scores"
    )
    caption = (
        f"How often a detection is right ({OVERLAP[figures.kind]} 0.5, class included) by its score. Scores are {lean(found)}; "
        f"the expected calibration error is {found.error:.3f}. Bars below the line: scores promise too much. This changes no "
        "AP, which looks at their order alone, but matters to who uses a score as a probability."
    )
    return _figure(chart, caption)


def _difference(comparison: Comparison, against: str) -> str:
    rows = [(d.name, d.low, d.value, d.high, signed(d.value)) for d in comparison.differences]
    caption = (
        f"{verdict(comparison, against)} Dots are this result less the other, bars the {comparison.confidence:.0%} interval "
        f"of {comparison.resamples:,} paired bootstrap resamples of the images; filled where it leaves out zero. It tells of "
        "other images, not of other seeds in training."
    )
    html = _figure(charts.interval_chart(rows, title=f"Difference to {against}"), caption)
    table = [
        [escape(d.name), number(d.other), number(d.this), signed(d.value), f"{signed(d.low)} to {signed(d.high)}"]
        for d in comparison.differences
    ]
    html += _table(["", "other", "this", "difference", "interval"], table, text_columns=1)
    if len(comparison.classes) > 1:
        table = [[escape(n), number(before), number(after), signed(after - before)] for n, before, after in comparison.classes]
        html += _table(["class", "AP, other", "AP, this", "difference"], table, text_columns=1, sortable=True)
    return html


def _worst(figures: Figures, worst: Sequence[WorstImage], *, drawn: bool) -> str:
    if not worst:
        return f"<p>No image has an error at a score threshold of {figures.threshold:.2g}.</p>"
    faulty = sum(outcome.errors > 0 for outcome in figures.outcomes)
    intro = (
        f"The {len(worst)} images with the most errors, of {faulty} that have any, at a score of {figures.threshold:.2g} or "
        "more. See first whether the truth is right: what looks like a false detection is often an object nobody annotated."
    )
    if not drawn:
        rows = [[escape(str(w.outcome.image["file_name"])), escape(_counts(w.outcome, figures))] for w in worst]
        note = " They are not drawn, as no images folder was given."
        return _table(["image", "what became of its objects"], rows, text_columns=2, caption=intro + note)
    return f"<p>{intro}</p>" + "".join(_worst_figure(w, figures) for w in worst)


def _worst_figure(found: WorstImage, figures: Figures) -> str:
    name = str(found.outcome.image["file_name"])
    caption = f"<b>{escape(name)}</b>: {escape(_counts(found.outcome, figures))}"
    if found.problem:
        return f'<figure class="worst"><figcaption>{caption} Not drawn: {escape(found.problem)}</figcaption></figure>'
    titles = ("truth", "prediction", "what went wrong")
    panels = "".join(
        f'<div><span>{title}</span><img src="{url}" alt="{escape(f"{title}: {name}", quote=True)}"></div>'
        for title, url in zip(titles, found.panels, strict=True)
    )
    return f'<figure class="worst"><figcaption>{caption}</figcaption><div class="panels">{panels}</div></figure>'


def _counts(outcome: Outcome, figures: Figures) -> str:
    """`14 objects: 9 right, 3 missed (RBC 2, WBC), 2 false (RBC 2), 2 of another class (RBC for WBC 2).`"""
    parts = [f"{len(outcome.correct)} right"] if outcome.objects else []
    names = dict(zip(figures.class_ids, figures.class_names, strict=True))
    for entries, word in ((outcome.missed, "missed"), (outcome.false, "false")):
        if entries:
            parts.append(f"{len(entries)} {word} ({_tally([names[c] for c in _classes_in(entries)])})")
    if outcome.confused:
        pairs = [f"{names[a['category_id']]} taken for {names[row['category_id']]}" for a, row in outcome.confused]
        parts.append(f"{len(pairs)} of the wrong class ({_tally(pairs)})")
    return f"{count(outcome.objects, 'object')}: {', '.join(parts)}."


def _classes_in(entries: Rows) -> list[int]:
    return [entry["category_id"] for entry in entries]


def _tally(names: Sequence[str]) -> str:
    counts = Counter(names).most_common()
    shown = ", ".join(f"{name} {n}" if n > 1 else name for name, n in counts[:4])
    return shown + (f", {len(counts) - 4} more classes" if len(counts) > 4 else "")


def _figure(chart: str, caption: str) -> str:
    return f"<figure>{chart}<figcaption>{escape(caption)}</figcaption></figure>"


def _table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int, caption: str = "", sortable: bool = False
) -> str:
    """A table of HTML cells; the first `text_columns` are text, the rest numbers. `caption` is text."""
    styles = ["" if i < text_columns else ' class="num"' for i in range(len(heads))]
    head = "".join(f'<th scope="col"{style}>{escape(name)}</th>' for name, style in zip(heads, styles, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{style}>{cell}</td>" for cell, style in zip(row, styles, strict=True)) + "</tr>" for row in rows
    )
    note = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    which = ' class="sortable"' if sortable else ""
    return f'{note}<div class="scroll"><table{which}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
