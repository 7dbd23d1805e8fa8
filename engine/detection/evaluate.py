"""A detector's predictions as COCO results rows, scored and drawn."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.data.dataset import CocoDataset
from engine.detection.coco_eval import Backend, CocoScore, IouType, load_ground_truth, score_results
from engine.detection.config import DetectionEvalConfig
from engine.detection.pictures import draw_predictions
from engine.detection.results import check_results, read_results, rows_of_type, to_rows
from engine.files import make_folder
from engine.job import Evaluation

Rows = list[dict[str, Any]]


class DetectionEvaluation(Evaluation):
    """Collects COCO results rows, in each image's own pixels.

    Args:
        dataset: the validation set.
        iou_types: what the predictions are scored as.
        config: the scorer, and what is drawn.
    """

    def __init__(self, dataset: CocoDataset, *, iou_types: Sequence[IouType], config: DetectionEvalConfig) -> None:
        self.dataset = dataset
        self.iou_types = iou_types
        self.config = config
        self._rows: dict[int, Rows] = {}

    @property
    def rows(self) -> Rows:
        """The rows in the data set's order."""
        return [row for image_id in self.dataset.annotations.image_ids.tolist() for row in self._rows.get(image_id, [])]

    def add(self, target: dict[str, Any], prediction: Any) -> None:
        """Take torchvision's dict of one image."""
        image_id = int(target["image_id"])
        self._rows[image_id] = to_rows(image_id, prediction, self.dataset.categories)

    def collected(self) -> dict[int, Rows]:
        """The rows of each image."""
        return self._rows

    def merge(self, parts: Sequence[dict[int, Rows]]) -> None:
        """Take the rows of all processes."""
        self._rows = {image_id: rows for part in parts for image_id, rows in part.items()}

    def score(self, output_dir: Path | None = None) -> list[CocoScore]:  # type: ignore[override]
        """COCO's numbers, boxes first.

        Written: `bbox_results.json`, `segm_results.json`, `keypoints_results.json` in COCO's results format, and `scores.json`:
        the numbers, and the AP of each class.

        Raises:
            UserError: another number of keypoint sigmas is configured than there are keypoints.
        """
        ground_truth = load_ground_truth(self.dataset.annotations.path)
        if output_dir is not None:
            make_folder(output_dir)
        scores = []
        for iou_type in self.iou_types:
            results = rows_of_type(self.rows, iou_type)
            if output_dir is not None:
                (output_dir / f"{iou_type}_results.json").write_text(json.dumps(results))
            score = score_results(
                ground_truth,
                results,
                iou_type=iou_type,
                backend=self.config.backend,
                keypoint_sigmas=self.config.keypoint_sigmas,
            )
            scores.append(score)
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
