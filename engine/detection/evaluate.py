"""A detector's predictions as COCO results rows, scored and drawn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.dataset import CocoDataset
from engine.detection.coco_eval import Backend, CocoScore, IouType, load_ground_truth, score_results
from engine.detection.config import DetectionEvalConfig
from engine.detection.pictures import draw_predictions
from engine.detection.results import Detections, check_results, read_results, rows_of_type, to_detections
from engine.detection.streaming import GroundTruth, StreamingScorer
from engine.files import make_folder
from engine.job import Evaluation

Rows = list[dict[str, Any]]
Part = tuple[dict[int, Detections], dict[IouType, bytes]]


class DetectionEvaluation(Evaluation):
    """Keeps what is detected, in each image's own pixels, and matches it with the truth image by image.

    Args:
        dataset: the validation set.
        truth: its annotations, for the scorer.
        iou_types: what the predictions are scored as.
        config: the scorer, and what is drawn.

    Raises:
        UserError: the scorer's options do not fit the annotations.
    """

    def __init__(
        self, dataset: CocoDataset, *, truth: GroundTruth, iou_types: Sequence[IouType], config: DetectionEvalConfig
    ) -> None:
        self.dataset = dataset
        self.truth = truth
        self.iou_types = iou_types
        self.config = config
        self._detections: dict[int, Detections] = {}
        self._scorers: dict[IouType, StreamingScorer] = {}
        if config.backend == "hotcoco":
            options = config.score_options()
            self._scorers = {t: StreamingScorer(truth, iou_type=t, options=options) for t in iou_types}

    @property
    def rows(self) -> Rows:
        """COCO results rows in the data set's order."""
        return [row for image_id in self.dataset.annotations.image_ids.tolist() for row in self._rows(image_id)]

    def _rows(self, image_id: int) -> Rows:
        found = self._detections.get(image_id)
        return [] if found is None else found.rows(image_id, self.dataset.categories)

    def add(self, target: dict[str, Any], prediction: Any) -> None:
        """Take what is detected in an image: `Detections`, or torchvision's dict."""
        image_id = int(target["image_id"])
        found = prediction if isinstance(prediction, Detections) else to_detections(prediction)
        self._detections[image_id] = found
        rows = self._rows(image_id)
        for iou_type, scorer in self._scorers.items():
            scorer.add(image_id, rows_of_type(rows, iou_type))

    def collected(self) -> Part:
        """What this process has detected and matched."""
        return self._detections, {iou_type: scorer.state() for iou_type, scorer in self._scorers.items()}

    def merge(self, parts: Sequence[Part]) -> None:
        """Take the parts of all processes."""
        self._detections = {image_id: found for detections, _ in parts for image_id, found in detections.items()}
        for iou_type, scorer in self._scorers.items():
            scorer.merge([states[iou_type] for _, states in parts])

    def score(self, output_dir: Path | None = None) -> list[CocoScore]:  # type: ignore[override]
        """COCO's numbers, boxes first; -1 where the images have no annotations, such as those of a test set.

        Written: `bbox_results.json`, `segm_results.json`, `keypoints_results.json` in COCO's results format, and `scores.json`:
        the numbers, and the AP of each class.
        """
        rows = self.rows if output_dir is not None or not self._scorers else []
        if output_dir is not None:
            make_folder(output_dir)
        scores = []
        for iou_type in self.iou_types:
            results = rows_of_type(rows, iou_type)
            if output_dir is not None:
                (output_dir / f"{iou_type}_results.json").write_text(json.dumps(results))
            if iou_type in self._scorers:
                scores.append(self._scorers[iou_type].score())
            else:
                options = self.config.score_options()
                scores.append(
                    score_results(self.truth.content, results, iou_type=iou_type, backend=self.config.backend, options=options)
                )
        if output_dir is not None:
            content = {score.kind: {"stats": score.stats, "per_class": score.per_class} for score in scores}
            (output_dir / "scores.json").write_text(json.dumps({"backend": self.config.backend, **content}, indent=2))
        return scores

    def draw(self, folder: Path) -> list[Path]:
        """Draw images with the truth on the left and what is predicted on the right."""
        count, threshold = self.config.pictures, self.config.picture_score
        return draw_predictions(self.dataset, self.rows, folder, count=count, score_threshold=threshold)


def evaluate_results(results: str, annotations: str, *, iou_type: IouType, backend: Backend) -> CocoScore:
    """Score a COCO results file and print COCO's numbers.

    Raises:
        UserError: a file is missing or malformed, or the results name images or categories the annotations do not list.
    """
    rows = read_results(results, iou_type=iou_type)
    ground_truth = load_ground_truth(annotations)
    check_results(rows, ground_truth, source=results)
    score = score_results(ground_truth, rows, iou_type=iou_type, backend=backend)
    print(f"{iou_type}:", *score.lines(), sep="\n")
    return score
