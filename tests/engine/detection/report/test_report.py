"""The whole report: what is on the page and beside it, and what is refused."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco import mask as mask_api
from PIL import Image

from backbones.errors import UserError
from engine.detection.coco_eval import ScoreOptions, score_results
from engine.detection.report.report import ResultFiles, find_results, write_report
from tests.engine.detection.report.cases import NEVER, random_boxes

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its text, and whether they nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """An annotation file, a results file and the images."""
    truth, rows = random_boxes(0)
    return written(tmp_path, truth, rows)


def written(folder: Path, truth: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[Path, Path, Path]:
    annotations, results, images = folder / "truth.json", folder / "mine.json", folder / "images"
    annotations.write_text(json.dumps(truth))
    results.write_text(json.dumps(rows))
    rng = np.random.default_rng(0)
    for image in truth["images"]:
        path = images / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (image["height"], image["width"], 3), np.uint8)).save(path)
    return annotations, results, images


def test_the_page_has_every_section_and_needs_no_other_file(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, images = case
    path = write_report(annotations, find_results(results), tmp_path / "report", images=images, num_pictures=3)
    page = Page(path)
    names = ["short", "numbers", "classes", "curves", "threshold", "sizes", "errors", "confusion", "calibration", "worst"]
    assert page.ids() == [f"bbox-{name}" for name in names]
    assert [a["href"] for a in page.of("a")] == [f"#bbox-{name}" for name in names]
    sources = [attributes["src"] or "" for attributes in page.of("img")]
    assert len(sources) == 9  # truth, prediction and errors of three images
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(attributes["alt"] for attributes in page.of("img"))
    outside = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href") and not re.match("data:|#", v or "")]
    assert outside == []
    assert "url(" not in path.read_text()
    pictures = sorted((tmp_path / "report" / "pictures" / "bbox").glob("*.png"))
    assert len(pictures) == 3
    with Image.open(pictures[0]) as picture:
        assert picture.width > 1900


def test_the_numbers_on_the_page_and_in_the_json_are_the_scorers(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    page = Page(write_report(annotations, find_results(results), tmp_path / "report"))
    score = score_results(json.loads(annotations.read_text()), json.loads(results.read_text()), iou_type="bbox")
    for name, value in score.stats.items():
        assert f"{name} {'–' if value < 0 else f'{value:.3f}'}" in re.sub(
            r" (mean precision|share)[^–]*? (?=\d\.\d{3}|–)", " ", page.text
        )
    figures = json.loads((tmp_path / "report" / "figures.json").read_text())["bbox"]
    assert figures["stats"] == score.stats
    assert {c["name"]: c["ap"] for c in figures["classes"]} == score.per_class
    assert sum(image["missed"] for image in figures["images"]) == sum(row[-1] for row in figures["confusion"])


def test_names_that_look_like_html_stay_text(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script><b>&\"'"
    truth, rows = random_boxes(0)
    truth["categories"][0]["name"] = nasty
    for image in truth["images"]:
        image["file_name"] = f"<i onerror=x>{image['file_name']}"
    annotations, results, images = written(tmp_path, truth, rows)
    named = ResultFiles("<script>run</script>", {"bbox": results})
    path = write_report(annotations, named, tmp_path / "report", images=images, against=named, resamples=3)
    page = Page(path)
    assert len(page.of("script")) == 1  # our own
    assert len(page.of("b")) == len([a for a in page.of("figure") if a.get("class") == "worst"])
    assert page.of("i") == []
    assert nasty in page.texts
    assert "<script>run</script>: the score, explained" in page.texts


def test_two_results_are_compared(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    rows = json.loads(results.read_text())
    (tmp_path / "fewer.json").write_text(json.dumps(rows[::3]))
    path = write_report(
        annotations, find_results(results), tmp_path / "report", against=find_results(tmp_path / "fewer.json"), resamples=20
    )
    page = Page(path)
    assert "bbox-difference" in page.ids()
    assert "Difference to fewer" in page.texts
    comparison = json.loads((tmp_path / "report" / "figures.json").read_text())["bbox"]["comparison"]
    fewer = score_results(json.loads(annotations.read_text()), rows[::3], iou_type="bbox")
    assert comparison["differences"][0]["other"] == pytest.approx(fewer.stats["AP"])


def test_no_detections_no_images_folder_and_a_class_without_objects(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    results.write_text("[]")
    page = Page(write_report(annotations, find_results(results), tmp_path / "report"))
    assert "There is no detection at all" in page.text
    assert "nothing to find" in page.text
    assert f"class {NEVER}" in page.text
    assert "They are not drawn" in page.text
    assert "nan" not in page.text.lower()


def test_one_class_and_results_without_an_error(tmp_path: Path) -> None:
    truth, _ = random_boxes(1, crowds=False)
    for annotation in truth["annotations"]:
        annotation["category_id"] = truth["categories"][0]["id"]
    truth["categories"] = truth["categories"][:1]
    fields = ("image_id", "category_id", "bbox")
    rows = [{name: a[name] for name in fields} | {"score": 0.9} for a in truth["annotations"]]
    annotations, results, images = written(tmp_path, truth, rows)
    page = Page(write_report(annotations, find_results(results), tmp_path / "report", images=images))
    assert "No image has an error" in page.text
    assert "1.000" in page.texts
    assert page.of("img") == []


def test_masks_are_drawn_without_boxes_in_the_results(tmp_path: Path) -> None:
    truth, rows = random_boxes(2, images=4)
    for entry in (*truth["annotations"], *rows):
        image = np.zeros((240, 320), np.uint8, order="F")
        x, y, w, h = (round(v) for v in entry["bbox"])
        image[max(y, 0) : y + h, max(x, 0) : x + w] = 1
        rle = mask_api.encode(image)
        entry["segmentation"] = {"size": [240, 320], "counts": rle["counts"].decode()}
    for row in rows:
        del row["bbox"]
    annotations, results, images = written(tmp_path, truth, rows)
    found = find_results(results, iou_type="segm")
    page = Page(write_report(annotations, found, tmp_path / "report", images=images, num_pictures=2))
    assert len(page.of("img")) == 6
    assert "segm-confusion" in page.ids()


def keypoint_case(folder: Path) -> tuple[Path, Path, Path]:
    truth, rows = random_boxes(3, crowds=False)
    rng = np.random.default_rng(0)
    kept = truth["categories"][0]["id"]
    truth["categories"][0]["keypoints"] = ["nose", "left_eye", "right_eye"]
    for entry in (*truth["annotations"], *rows):
        x, y, w, h = entry["bbox"]
        points = rng.uniform(0, 1, (3, 2)) * [w, h] + [x, y]
        entry["keypoints"] = [float(v) for point in points for v in (*point, 2)]
        entry["category_id"] = kept
    for annotation in truth["annotations"]:
        annotation["num_keypoints"] = 3
    for row in rows:
        del row["bbox"]
    return written(folder, truth, rows)


def test_keypoints_leave_out_what_does_not_apply(tmp_path: Path) -> None:
    annotations, results, images = keypoint_case(tmp_path)
    found = find_results(results, iou_type="keypoints")
    page = Page(write_report(annotations, found, tmp_path / "report", images=images, num_pictures=2))
    assert {"keypoints-errors", "keypoints-confusion"}.isdisjoint(page.ids())
    assert {"keypoints-numbers", "keypoints-calibration", "keypoints-worst"} <= set(page.ids())
    assert len(page.of("img")) == 6
    assert "OKS" in page.text


def test_keypoints_of_a_set_without_any_are_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    rows = [{**row, "keypoints": [1, 2, 2]} for row in json.loads(results.read_text())]
    results.write_text(json.dumps(rows))
    with pytest.raises(UserError, match="no labelled keypoints"):
        write_report(annotations, find_results(results, iou_type="keypoints"), tmp_path / "report")


def test_a_set_without_labels_is_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    annotations.write_text(json.dumps(json.loads(annotations.read_text()) | {"annotations": []}))
    with pytest.raises(UserError, match=r"truth\.json has no labelled objects"):
        write_report(annotations, find_results(results), tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_results_of_other_images_are_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    rows = json.loads(results.read_text())
    results.write_text(json.dumps([*rows, {**rows[0], "image_id": 4}]))
    with pytest.raises(UserError, match="is of image 4, which the annotations do not list"):
        write_report(annotations, find_results(results), tmp_path / "report")


def test_images_that_cannot_be_read_or_are_of_another_size_are_named_and_the_rest_is_drawn(
    case: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    annotations, results, images = case
    first, second, third = [
        image["file_name"]
        for image in json.loads(
            (write_report(annotations, find_results(results), tmp_path / "a").parent / "figures.json").read_text()
        )["bbox"]["images"][:3]
    ]
    (images / first).unlink()
    Image.new("RGB", (10, 10)).save(images / second)
    page = Page(write_report(annotations, find_results(results), tmp_path / "report", images=images, num_pictures=3))
    assert len(page.of("img")) == 3
    assert f"There is no image file {images / first}" in page.text
    assert "the image is 10 x 10 pixels, its annotations say 320 x 240" in page.text
    assert third in page.text


def test_an_images_folder_that_is_not_there_is_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    with pytest.raises(UserError, match="no folder of images"):
        write_report(annotations, find_results(results), tmp_path / "report", images=tmp_path / "nowhere")


def test_scores_beyond_one_give_a_page_without_calibration(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, images = case
    rows = [{**row, "score": 20 * row["score"] - 10} for row in json.loads(results.read_text())]
    results.write_text(json.dumps(rows))
    page = Page(write_report(annotations, find_results(results), tmp_path / "report", images=images, num_pictures=1))
    assert "the scores are not between 0 and 1" in page.text
    assert len(page.of("img")) == 3


def test_many_classes_show_the_most_confused_and_options_reach_the_numbers(tmp_path: Path) -> None:
    truth, rows = random_boxes(4, images=30)
    rng = np.random.default_rng(1)
    truth["categories"] = [{"id": i, "name": f"kind {i}"} for i in range(1, 41)]
    for entry in (*truth["annotations"], *rows):
        entry["category_id"] = int(rng.integers(1, 41))
    annotations, results, _ = written(tmp_path, truth, rows)
    options = ScoreOptions(iou_thresholds=(0.3,), area_ranges={"tiny": (0, 400)})
    page = Page(write_report(annotations, find_results(results), tmp_path / "report", options=options))
    assert "The 20 classes most often confused" in page.text
    assert "AP30" in page.texts
    assert "tiny" in page.texts


def test_a_runs_folder_holds_results_of_several_types(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    annotations, results, _ = case
    run = tmp_path / "my_run" / "eval"
    run.mkdir(parents=True)
    (run / "bbox_results.json").write_text(results.read_text())
    (run / "segm_results.json").write_text("[]")
    truth = json.loads(annotations.read_text())
    for annotation in truth["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    annotations.write_text(json.dumps(truth))
    for source in (tmp_path / "my_run", run):
        found = find_results(source)
        assert (found.name, list(found.files)) == ("my_run", ["bbox", "segm"])
        assert list(find_results(source, iou_type="segm").files) == ["segm"]
    assert find_results(run / "bbox_results.json").name == "my_run"
    page = Page(write_report(annotations, find_results(run), tmp_path / "report"))
    assert [i for i in page.ids() if "-" not in i] == ["bbox", "segm"]
    assert {"Boxes", "Masks"} <= set(page.texts)
    assert len(page.ids()) == len(set(page.ids()))


@pytest.mark.shared_data
@pytest.mark.parametrize(("kind", "published"), [("bbox", (0.505, 0.697, 0.573)), ("segm", (0.320, 0.562, 0.299))])
def test_cocos_own_example_has_its_published_numbers_on_the_page(
    kind: Any, published: tuple[float, ...], shared: Path, tmp_path: Path
) -> None:
    data = shared / "data" / "evalcheck_coco2014"
    found = find_results(data / f"instances_val2014_fake{kind}100_results.json", iou_type=kind)
    page = Page(write_report(data / "instances_val2014_100.json", found, tmp_path / "report"))
    assert [f"{value:.3f}" for value in published] == page.texts[page.texts.index("In short", 20) :][2:7:2]
    assert "9 crowd regions left out of account" in page.text


@pytest.mark.parametrize("name", ["nothing.json", "empty"])
def test_what_has_no_results_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no results"):
        find_results(tmp_path / name)
