"""Two results of one data set: their difference, and how much of it the choice of images could be."""

import math
from dataclasses import dataclass

import hotcoco

from engine.detection.report.matching import Matched


@dataclass(frozen=True, slots=True)
class Difference:
    """This result's number less the other's. The interval holds what other images of the same kind would probably give."""

    name: str
    other: float
    this: float
    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences of COCO's numbers and of each class's AP, the largest gain first."""

    differences: list[Difference]
    classes: list[tuple[str, float, float]]  # name, the other's AP, this one's
    resamples: int
    confidence: float


def compare(this: Matched, other: Matched, *, resamples: int = 500, seed: int = 0, confidence: float = 0.95) -> Comparison:
    """Compare two results on the same truth by a paired bootstrap over its images (the percentile interval).

    With other max_dets, area ranges or IoUs than COCO's, only the numbers that do not depend on them are compared.

    Args:
        this: the result the report is of.
        other: what it is compared with, matched with the same options.
        resamples: how many times the images are drawn anew.
        confidence: the share of resamples within the interval.
    """
    found = hotcoco.compare(other.evaluator, this.evaluator, n_bootstrap=resamples, seed=seed, confidence=confidence)
    # Where other than COCO's numbers are asked for, some of hotcoco's are misnamed or missing: what is not ours is left out.
    known = {name: name.replace("@", "") for name in found["metric_keys"]}
    differences = [
        Difference(
            name=known[name],
            other=found["metrics_a"][name],
            this=found["metrics_b"][name],
            value=found["deltas"][name],
            low=found["ci"][name]["lower"],
            high=found["ci"][name]["upper"],
        )
        for name in found["metric_keys"]
        if found["metrics_a"][name] > -1
        and name in found["ci"]
        and math.isclose(found["metrics_b"][name], this.score.stats.get(known[name], -1), abs_tol=1e-9)
        and math.isclose(found["metrics_a"][name], other.score.stats.get(known[name], -1), abs_tol=1e-9)
    ]
    aps = zip(this.class_names, other.score.per_class.values(), this.score.per_class.values(), strict=True)
    classes = [(name, before, after) for name, before, after in aps if before > -1]
    classes.sort(key=lambda row: row[1] - row[2])
    return Comparison(differences, classes, resamples, confidence)
