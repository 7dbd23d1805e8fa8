"""engine/data/sources.py: data sets by path and by name."""

from pathlib import Path

import pytest

from backbones.errors import UserError
from engine.data import shapes
from engine.data.sources import DATASETS, CocoPaths, find_paths, register_dataset


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(DATASETS, "_constructors", dict(DATASETS._constructors))


@pytest.fixture
def coco(tmp_path):
    """(images folder, annotation file), both there."""
    (tmp_path / "train2017").mkdir()
    (tmp_path / "instances.json").write_text("{}")
    return tmp_path / "train2017", tmp_path / "instances.json"


def test_files_that_are_there_are_found(coco):
    images, annotations = coco
    assert find_paths(str(images), str(annotations), split="train") == CocoPaths(images, annotations)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("missing", "kind"), [(0, "folder"), (1, "file")])
def test_what_is_missing_is_named_with_its_key_and_the_way_out(coco, split, missing, kind):
    paths = [str(path) for path in coco]
    paths[missing] = "no/such/place"
    with pytest.raises(UserError) as caught:
        find_paths(*paths, split=split)
    first, *rest = str(caught.value).splitlines()
    key = f"data.{split}.{('images', 'annotations')[missing]}"
    assert first == f"{key}: there is no {kind} no/such/place"
    text = "\n".join(rest)
    assert "data/coco/train2017/" in text
    assert "data/coco/annotations/instances_val2017.json" in text
    assert "cocodataset.org" in text
    assert f"data.{split}.images=FOLDER data.{split}.annotations=FILE" in text
    assert "configs/quickstart.yaml" in text


def test_a_file_in_place_of_a_folder_and_the_reverse_are_missing(coco):
    images, annotations = (str(path) for path in coco)
    with pytest.raises(UserError, match=r"data\.train\.images: there is no folder"):
        find_paths(annotations, annotations, split="train")
    with pytest.raises(UserError, match=r"data\.train\.annotations: there is no file"):
        find_paths(images, images, split="train")


def test_the_config_that_needs_no_download_exists():
    assert (Path(__file__).parents[3] / "configs" / "quickstart.yaml").is_file()


def test_an_unknown_set_suggests_the_nearest():
    with pytest.raises(UserError, match=r"no embedded data set 'shapse'\. Did you mean 'shapes'"):
        DATASETS.get("shapse")


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_drawn_shapes_are_written_where_the_cache_is(split, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "IMAGE_COUNTS", {"train": 3, "val": 2})
    monkeypatch.setenv("VERTEBRA_CACHE", str(tmp_path))
    images, annotations = DATASETS.get("shapes")(split)
    assert images.is_relative_to(tmp_path)
    assert find_paths(str(images), str(annotations), split=split) == CocoPaths(images, annotations)
    assert len(list(images.iterdir())) == {"train": 3, "val": 2}[split]


@pytest.mark.usefixtures("own_registry")
def test_a_function_registers_a_data_set_once(coco):
    @register_dataset("own")
    def own(split):
        return coco

    assert DATASETS.get("own")("val") == coco
    with pytest.raises(UserError, match="'shapes' is registered already"):
        register_dataset("shapes")(own)
