"""engine/detection/report: names of classes and images are text on the page, whatever is in them."""

import json
from pathlib import Path

from engine.detection.report.report import ResultFiles, write_report
from tests.engine.conftest import write_coco

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"onload='alert(2)'.png"


def test_a_name_that_is_a_script_is_text(tmp_path):
    data = write_coco(tmp_path / "data", 3)
    path = Path(data["annotations"])
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = SCRIPT
    for image in content["images"]:
        name = f"{image['id']}{QUOTES}"
        (Path(data["images"]) / image["file_name"]).rename(Path(data["images"]) / name)
        image["file_name"] = name
    path.write_text(json.dumps(content))
    rows = [
        {"image_id": a["image_id"], "category_id": category["id"], "bbox": a["bbox"], "score": 0.9}
        for a in content["annotations"]
        for category in content["categories"]
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    results = ResultFiles(f"x{SCRIPT}", {"bbox": tmp_path / "r.json"})
    page = write_report(path, results, tmp_path / "report", images=data["images"], resamples=2).read_text()
    assert "alert(1)" in page
    assert "alert(2)" in page
    assert SCRIPT not in page
    assert QUOTES not in page
    written = [file for file in tmp_path.rglob("*.png") if Path(data["images"]) not in file.parents]
    assert written
    assert all(tmp_path / "report" / "pictures" in file.parents for file in written)
