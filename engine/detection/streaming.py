"""COCO's scores while the images come: each process matches its own, and what it sends is small."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from engine.detection.coco_eval import (
    CocoScore,
    IouType,
    ScoreOptions,
    keypoint_truth,
    load_ground_truth,
    scores_of,
    sigmas_of,
)


@dataclass(frozen=True)
class GroundTruth:
    """A COCO annotation file as the scorers read it, loaded when it is first asked for."""

    path: Path
    category_ids: frozenset[int] | None = None  # of the classes that are scored; None: all

    @cached_property
    def content(self) -> dict[str, Any]:
        """The file's content, with the fields the scorers read filled in.

        Raises:
            UserError: it is malformed.
        """
        content = load_ground_truth(self.path)
        if self.category_ids is None or self.category_ids >= {category["id"] for category in content["categories"]}:
            return content
        return content | {
            "categories": [category for category in content["categories"] if category["id"] in self.category_ids],
            "annotations": [entry for entry in content["annotations"] if entry["category_id"] in self.category_ids],
        }

    @cached_property
    def images(self) -> dict[int, dict[str, Any]]:
        """Image entries by id."""
        return {image["id"]: image for image in self.content["images"]}

    @cached_property
    def annotations(self) -> dict[int, list[dict[str, Any]]]:
        """Annotations by the id of their image; none for an image without."""
        by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for annotation in self.content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return by_image


class StreamingScorer:
    """Matches detections image by image; states of several processes merge into the score of all, to the last bit.

    Args:
        truth: the annotations.
        iou_type: bbox, segm or keypoints.
        options: what is scored, and how.

    Raises:
        UserError: the options do not fit the annotations.
    """

    def __init__(self, truth: GroundTruth, *, iou_type: IouType, options: ScoreOptions) -> None:
        self.truth = truth
        self.iou_type = iou_type
        self.options = options
        content, sigmas = truth.content, None
        if iou_type == "keypoints":
            content = keypoint_truth(content)
            sigmas = sigmas_of(content, options.keypoint_sigmas)
        self.categories = content["categories"]
        self._scored = {category["id"] for category in self.categories}
        params = None
        if not options.is_standard or sigmas is not None:
            params = hotcoco.Params(iou_type)
            options.set_hotcoco(params, sigmas)
        self._stream = hotcoco.StreamingEval(self.categories, iou_type, lvis_style=options.style == "lvis", params=params)

    def add(self, image_id: int, rows: Sequence[dict[str, Any]]) -> None:
        """Match an image's rows, as `engine.detection.results.rows_of_type` gives them."""
        annotations = self.truth.annotations.get(image_id, [])
        self._stream.update(
            [self.truth.images[image_id]],
            [annotation for annotation in annotations if annotation["category_id"] in self._scored],
            [row for row in rows if row["category_id"] in self._scored],
        )

    def state(self) -> bytes:
        """What has been matched, for another process."""
        return self._stream.to_bytes()

    def merge(self, states: Sequence[bytes]) -> None:
        """Take the states of all processes in the place of this one's own."""
        self._stream = hotcoco.StreamingEval.merge([hotcoco.StreamingEval.from_bytes(state) for state in states])

    def score(self) -> CocoScore:
        """The score of all images."""
        evaluator = self._stream.finalize()
        evaluator.accumulate()
        evaluator.summary_lines()  # computes the stats
        accumulated = evaluator.eval
        assert accumulated is not None
        return scores_of(
            accumulated["precision"],
            accumulated["recall"],
            np.asarray(evaluator.stats),
            categories=self.categories,
            iou_type=self.iou_type,
            options=self.options,
        )
