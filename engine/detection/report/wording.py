"""What the report says of its figures: what one sees, and what to do about it."""

import math

import numpy as np

from engine.detection.report.comparison import Comparison
from engine.detection.report.figures import CalibrationFigures, ErrorFigures, Figures

KIND_TITLES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
OVERLAP = {"bbox": "IoU", "segm": "mask IoU", "keypoints": "OKS"}

ERROR_NAMES = {
    "Cls": "wrong class",
    "Loc": "imprecise",
    "Both": "class and place",
    "Dupe": "found twice",
    "Bkg": "nothing there",
    "Miss": "missed",
}
_ADVICE = {
    "Cls": "objects that are found and given the wrong class. See below which classes are taken for which; they need more or "
    "more consistent examples, or are one class.",
    "Loc": "detections that lie on their object only roughly. Train longer or at a higher resolution, try a cascade head, and "
    "see whether annotators draw objects alike.",
    "Both": "detections that have the wrong class and lie on their object only roughly. Look at the worst images first.",
    "Dupe": "objects that are found more than once. Lower the head's NMS threshold.",
    "Bkg": "detections where nothing is annotated. See in the worst images whether the annotators overlooked objects there; if "
    "not, train on more images without objects.",
    "Miss": "objects that nothing lies on. See under sizes whether they are the small ones (then train and test at a higher "
    "resolution), and in the table of classes whether they are the rare ones (then sample those more often).",
}
_GROUPS = {
    "s": "small objects",
    "m": "medium objects",
    "l": "large objects",
    "r": "rare classes",
    "c": "common classes",
    "f": "frequent classes",
}


def number(value: float, digits: int = 3) -> str:
    """A score for a table; an en dash where there is nothing to score."""
    return "–" if value <= -1 or not math.isfinite(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference, with a true minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def count(value: int, thing: str, things: str | None = None) -> str:
    """`1 object`, `1,137 objects`."""
    return f"{value:,} {thing if value == 1 else things or thing + 's'}"


def meaning(name: str, kind: str) -> str:
    """What one of COCO's numbers is."""
    overlap, detail = OVERLAP[kind], name[2:]
    what = "mean precision" if name.startswith("AP") else "share of objects found"
    if not detail:
        return f"{what}, {overlap} 0.50 to 0.95"
    if detail[0] in _GROUPS:  # LVIS adds the number of detections
        return f"{what}, {_GROUPS[detail[0]]}"
    if detail in ("50", "75"):
        return f"{what}, {overlap} 0.{detail}"
    if detail.startswith("_"):
        return f"{what}, {detail[1:]} objects"
    if name.startswith("AR") and detail.isdigit():
        return f"{what} with {count(int(detail), 'detection')} an image"
    return what


def findings(figures: Figures, comparison: Comparison | None, against: str) -> list[str]:
    """The report in a few sentences."""
    found = []
    if not figures.detections:
        return [f"There is no detection at all: all of the {count(figures.objects, 'object')} are missed."]
    if comparison is not None and comparison.differences:
        found.append(verdict(comparison, against))
    if figures.errors is not None:
        found.append(main_error(figures.errors))
    ap50, ap75 = figures.stats.get("AP50", -1), figures.stats.get("AP75", -1)
    if ap50 > 0 and -1 < ap75 < 0.7 * ap50:
        found.append(
            f"From {OVERLAP[figures.kind]} 0.50 to 0.75 AP falls from {number(ap50)} to {number(ap75)}: much is found, but not "
            "placed exactly."
        )
    scored = [c for c in figures.classes if c.ap > -1]
    if len(scored) > 1:
        best, worst = scored[0], scored[-1]
        rare = f", of which there are only {worst.objects}" if worst.objects < 30 else ""
        found.append(
            f"The best class is {best.name} (AP {number(best.ap)}), the weakest {worst.name} ({number(worst.ap)}){rare}."
        )
    sizes = [size for size in figures.sizes if size.ap > -1 and size.objects >= 10]
    if len(sizes) > 1:
        weakest = min(sizes, key=lambda size: size.ap)
        share = weakest.objects / max(figures.objects, 1)
        found.append(f"The weakest size is {weakest.name} (AP {number(weakest.ap)}), {share:.0%} of the objects.")
    i = int(np.abs(figures.thresholds.thresholds - figures.threshold).argmin())
    found.append(
        f"Used with a score threshold of {figures.threshold:.2g}, {figures.thresholds.precision[i]:.0%} of the detections are "
        f"right and {figures.thresholds.recall[i]:.0%} of the objects are found ({OVERLAP[figures.kind]} 0.5)."
    )
    hidden = [c for c in figures.classes if c.found >= 0.2 and c.found_at_common < 0.5 * c.found]
    if hidden:
        worst = max(hidden, key=lambda c: c.found - c.found_at_common)
        more = f" So with {count(len(hidden) - 1, 'other class', 'other classes')}." if len(hidden) > 1 else ""
        found.append(
            f"{worst.name} needs a lower threshold of its own: {worst.found:.0%} of it are found at {worst.threshold:.2g}, "
            f"{worst.found_at_common:.0%} at {figures.threshold:.2g}.{more}"
        )
    if figures.calibration is not None and figures.calibration.error > 0.1:
        found.append(f"Scores are {lean(figures.calibration)}: do not read them as probabilities.")
    return found


def main_error(errors: ErrorFigures) -> str:
    """The kind of error that costs the most."""
    kind = max(errors.gains, key=lambda kind: errors.gains[kind])
    gain = errors.gains[kind]
    if gain < 0.005:
        if errors.ap50 > 0.95:
            return "No kind of error costs as much as 0.005 AP50."
        return (
            "No kind of error alone costs as much as 0.005 AP50: errors come together, and only curing several of them helps."
        )
    return f"Most AP50 is lost ({number(gain)}) to {_ADVICE[kind]}"


def lean(calibration: CalibrationFigures) -> str:
    """Whether scores are too high or too low, and by how much on average."""
    kept = calibration.counts > 0
    gap = float(np.average((calibration.confidence - calibration.accuracy)[kept], weights=calibration.counts[kept]))
    if abs(gap) < 0.02:
        return "right on average"
    return f"too {'high' if gap > 0 else 'low'} by {abs(gap):.2f} on average"


def verdict(comparison: Comparison, against: str) -> str:
    """Whether the difference is more than the choice of images could make."""
    first = comparison.differences[0]
    interval = f"{comparison.confidence:.0%} interval {signed(first.low)} to {signed(first.high)}"
    if first.value == 0 == first.low == first.high:
        return f"{first.name} is the same as that of {against}."
    if not first.is_clear:
        return (
            f"Against {against} {first.name} differs by {signed(first.value)} ({interval}): that could be the choice of images."
        )
    word = "higher" if first.value > 0 else "lower"
    return f"{first.name} is {word} than that of {against} by {number(abs(first.value))} ({interval})."
