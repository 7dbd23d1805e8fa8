"""Pictures of detections: what is coloured, what is not, and that nothing a detector can return makes drawing fail."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from engine.draw import class_colour, contact_sheet, draw_instances, save_picture, side_by_side
from heads.cropped_masks import CroppedMasks

NAMES = ["background", "cat", "dog", "bird"]
GREY = 90


def grey_image(height: int = 500, width: int = 700) -> torch.Tensor:
    """Longer side above the default `min_side`, so that a picture's pixels are the image's."""
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def one_instance(box: list[float], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"boxes": torch.tensor([box]), "labels": torch.tensor([1]), **more}


def mask_of(box: tuple[int, int, int, int], height: int = 500, width: int = 700) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, box[1] : box[3], box[0] : box[2]] = True
    return mask


def coloured(picture: np.ndarray) -> np.ndarray:
    return (picture != GREY).any(axis=2)


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


def test_border_has_the_class_colour_and_the_inside_is_left_alone():
    picture = draw_instances(grey_image(), one_instance([100.0, 200.0, 300.0, 400.0]), class_names=NAMES)
    assert picture.shape == (500, 700, 3)
    assert picture.dtype == np.uint8
    for edge in (picture[200, 150:300], picture[399, 100:300], picture[200:400, 100], picture[200:400, 299]):
        assert (edge == class_colour(1)).all()
    assert not coloured(picture)[202:398, 102:298].any()
    assert not coloured(picture)[402:].any()


@pytest.mark.parametrize("kind", ["bool", "uint8", "probabilities"])
def test_mask_tints_inside_only_and_has_a_contour(kind):
    mask = mask_of((300, 100, 400, 200))
    masks = {"bool": mask, "uint8": mask.to(torch.uint8), "probabilities": (mask * 0.6 + 0.3)[:, None]}[kind]
    instances = one_instance([20.0, 300.0, 200.0, 450.0], masks=masks)  # its box lies elsewhere, out of the way
    picture = draw_instances(grey_image(), instances, class_names=NAMES)
    tint = 0.55 * GREY + 0.45 * np.array(class_colour(1))
    np.testing.assert_allclose(picture[150, 350], tint, atol=1)
    assert (picture[100, 300:400] == class_colour(1)).all()
    assert (picture[100:200, 399] == class_colour(1)).all()
    around = coloured(picture)[50:250, 250:450]
    assert around.sum() == 100 * 100


@pytest.mark.parametrize(("size", "limits", "expected"), [
    ((120, 160), {}, (480, 640)),
    ((120, 160), {"min_side": 0}, (120, 160)),
    ((160, 120), {"min_side": 480}, (480, 360)),
    ((500, 1000), {"max_side": 320}, (160, 320)),
    ((1, 3000), {"max_side": 100}, (1, 100)),
])  # fmt: skip
def test_picture_size(size, limits, expected):
    instances = one_instance([10.0, 10.0, 60.0, 60.0], masks=mask_of((10, 10, 60, 60), *size))
    assert draw_instances(grey_image(*size), instances, class_names=NAMES, **limits).shape == (*expected, 3)


def test_enlarged_masks_and_boxes_stay_on_their_object():
    image = torch.zeros(3, 100, 160, dtype=torch.uint8)
    image[:, 40:60, 80:120] = 255
    instances = one_instance([80.0, 40.0, 120.0, 60.0], masks=mask_of((80, 40, 120, 60), 100, 160))
    picture = draw_instances(image, instances, class_names=NAMES)
    assert (picture[160, 330:480] == class_colour(1)).all()
    assert (picture[239, 320:480] == class_colour(1)).all()
    below = picture[240:, :].astype(int)
    assert not (below == class_colour(1)).all(axis=2).any()


def test_below_the_threshold_nothing_is_drawn():
    instances = one_instance([50.0, 50.0, 90.0, 90.0], scores=torch.tensor([0.4]), masks=mask_of((50, 50, 90, 90)))
    assert not coloured(draw_instances(grey_image(), instances, class_names=NAMES)).any()
    assert coloured(draw_instances(grey_image(), instances, class_names=NAMES, score_threshold=0.4)).any()


def test_ground_truth_without_scores_is_all_drawn():
    instances = {
        "boxes": torch.tensor([[10.0, 50, 60, 90], [200, 50, 260, 90], [400, 50, 460, 90]]),
        "labels": torch.tensor([1, 2, 3]),
    }
    picture = draw_instances(grey_image(), instances, class_names=NAMES, score_threshold=0.99)
    assert all(has_colour(picture, class_colour(label)) for label in (1, 2, 3))


def test_best_score_is_on_top():
    instances = {
        "boxes": torch.tensor([[100.0, 100, 300, 300], [100, 100, 300, 300]]),
        "labels": torch.tensor([2, 1]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    picture = draw_instances(grey_image(), instances, class_names=NAMES)
    assert (picture[299, 100:300] == class_colour(2)).all()


def test_one_class_gives_each_instance_its_colour():
    boxes = torch.tensor([[x, 100.0, x + 30, 130.0] for x in range(50, 650, 60)])
    instances = {"boxes": boxes, "labels": torch.ones(10, dtype=torch.int64)}
    picture = draw_instances(grey_image(), instances, class_names=["background", "nucleus"])
    assert len({tuple(picture[129, int(box[0])].tolist()) for box in boxes}) == 10
    several = draw_instances(grey_image(), instances, class_names=NAMES)
    assert len({tuple(several[129, int(box[0])].tolist()) for box in boxes}) == 1


def test_crowd_regions_are_dashed_and_hatched():
    instances = one_instance([100.0, 100.0, 500.0, 400.0], masks=mask_of((150, 150, 450, 350)))
    plain = coloured(draw_instances(grey_image(), instances, class_names=NAMES))
    crowd = coloured(draw_instances(grey_image(), instances | {"iscrowd": torch.tensor([1])}, class_names=NAMES))
    assert plain[399, 100:500].all()
    assert 0.3 < crowd[399, 100:500].mean() < 0.7
    assert plain[200:300, 200:400].all()
    assert 0.2 < crowd[200:300, 200:400].mean() < 0.5


@pytest.mark.parametrize("masks", [torch.zeros(0, 500, 700, dtype=torch.bool), torch.zeros(0, 1, 500, 700), None])
@pytest.mark.parametrize("boxes", [torch.zeros(0, 4), torch.zeros(0)])
def test_zero_instances(masks, boxes):
    instances = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    if masks is not None:
        instances["masks"] = masks
    assert not coloured(draw_instances(grey_image(), instances, class_names=NAMES)).any()


@pytest.mark.parametrize(("box", "is_seen"), [
    ([100.0, 100.0, 100.0, 100.0], True),
    ([100.0, 100.0, 100.4, 300.0], True),
    ([300.0, 300.0, 100.0, 100.0], True),
    ([-50.0, -50.0, 5000.0, 5000.0], True),
    ([699.9, 499.9, 900.0, 900.0], True),
    ([0.0, 0.0, 700.0, 500.0], True),
    ([-90.0, 10.0, -10.0, 60.0], False),
    ([800.0, 10.0, 900.0, 60.0], False),
    ([float("nan"), 10.0, 50.0, 60.0], False),
    ([float("-inf"), 10.0, float("inf"), 60.0], False),
    ([-1e38, -1e38, 1e38, 1e38], True),
])  # fmt: skip
@pytest.mark.parametrize("crowd", [0, 1])
def test_odd_boxes_do_not_fail(box, is_seen, crowd):
    instances = one_instance(box, iscrowd=torch.tensor([crowd]))
    assert coloured(draw_instances(grey_image(), instances, class_names=NAMES)).any() == is_seen


def test_an_empty_mask_is_not_drawn():
    instances = one_instance([100.0, 100.0, 200.0, 200.0], masks=torch.zeros(1, 500, 700, dtype=torch.bool))
    assert not coloured(draw_instances(grey_image(), instances, class_names=NAMES))[102:198, 102:198].any()


def test_gradients_and_half_precision_are_accepted():
    instances = one_instance(
        [100.0, 100.0, 200.0, 200.0],
        scores=torch.tensor([0.9], dtype=torch.bfloat16, requires_grad=True),
        masks=mask_of((100, 100, 200, 200)).to(torch.bfloat16)[:, None].requires_grad_(),
    )
    assert coloured(draw_instances(grey_image(), instances, class_names=NAMES)).any()


def test_a_hundred_classes_have_a_hundred_colours():
    colours = [class_colour(label) for label in range(1, 101)]
    assert len(set(colours)) == 100
    gaps = [np.abs(np.subtract(a, b)).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(gaps) >= 5
    assert len({class_colour(label) for label in range(1, 1204)}) == 1203  # LVIS


@pytest.mark.parametrize("name", ["", "x" * 5000, "très\nlong\tétiquette", "猫", "кошка", "قطة", "\ud800", "a\0b"])
def test_any_class_name_can_be_drawn(name):
    instances = one_instance([300.0, 200.0, 340.0, 240.0], scores=torch.tensor([0.97]))
    picture = draw_instances(grey_image(), instances, class_names=["background", name, "dog"])
    columns = np.flatnonzero(coloured(picture).any(axis=0))
    assert columns[-1] - columns[0] < 380  # half the picture for the text, and its margin


def test_tags_stay_inside_and_do_not_hide_each_other():
    corners = [[0.0, 0.0], [680.0, 0.0], [0.0, 480.0], [680.0, 480.0]]
    boxes = torch.tensor([[x, y, x + 20, y + 20] for x, y in corners])
    instances = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 4])}
    names = ["background", "cat", "dog", "bird", "horse"]
    picture = draw_instances(grey_image(), instances, class_names=names)
    for label, (x, y) in enumerate(corners, start=1):
        part = picture[int(y) : int(y) + 20, :][:, int(x) : int(x) + 20]
        assert has_colour(part, class_colour(label))
        tag = (picture == class_colour(label)).all(axis=2).sum()
        assert tag > 2 * 4 * 20 + 150  # the box's border, and more


def test_many_instances_stay_readable():
    """A tag each would cover this picture; those that find no free place are left out."""
    generator = torch.Generator().manual_seed(0)
    starts = torch.rand(300, 2, generator=generator) * 400
    instances = {
        "boxes": torch.cat((starts, starts + 15), dim=1),
        "labels": torch.arange(300) % 3 + 1,
        "scores": torch.ones(300),
    }
    picture = draw_instances(grey_image(), instances, class_names=NAMES)
    assert coloured(picture)[:420, :420].mean() < 0.8


@pytest.mark.parametrize("image", [
    torch.full((1, 500, 700), GREY, dtype=torch.uint8),
    torch.full((4, 500, 700), GREY, dtype=torch.uint8),
    np.full((500, 700), GREY, np.uint8),
    np.full((500, 700, 1), GREY, np.uint8),
    np.full((500, 700, 3), GREY, np.uint8)[::-1],
])  # fmt: skip
def test_grey_and_other_images(image):
    instances = one_instance([100.0, 200.0, 300.0, 400.0])
    expected = draw_instances(grey_image(), instances, class_names=NAMES)
    np.testing.assert_array_equal(draw_instances(image, instances, class_names=NAMES), expected)


def test_inputs_are_left_as_they_were():
    image = np.full((500, 700, 3), GREY, np.uint8)
    masks = mask_of((100, 100, 200, 200))
    draw_instances(image, one_instance([100.0, 100.0, 200.0, 200.0], masks=masks), class_names=NAMES)
    assert (image == GREY).all()
    assert masks.sum() == 100 * 100


@pytest.mark.parametrize("image", [
    torch.zeros(3, 50, 70), torch.zeros(2, 50, 70, dtype=torch.uint8), torch.zeros(3, 0, 0, dtype=torch.uint8),
    torch.zeros(1, 3, 50, 70, dtype=torch.uint8),
])  # fmt: skip
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        draw_instances(image, one_instance([1.0, 1.0, 9.0, 9.0]), class_names=NAMES)


def test_wrong_labels_and_masks_are_refused():
    with pytest.raises(ValueError, match="label 1 has no name"):
        draw_instances(grey_image(), one_instance([1.0, 1.0, 9.0, 9.0]), class_names=["background"])
    instances = one_instance([1.0, 1.0, 9.0, 9.0], masks=mask_of((1, 1, 9, 9), 60, 70))
    with pytest.raises(ValueError, match="masks are"):
        draw_instances(grey_image(), instances, class_names=NAMES)


def test_side_by_side():
    left, right = np.full((300, 400, 3), 10, np.uint8), np.full((300, 400, 3), 200, np.uint8)
    picture = side_by_side(left, right)
    assert picture.dtype == np.uint8
    assert picture.shape[0] > 300
    assert picture.shape[1] > 800
    assert (picture == 10).all(axis=2).sum() == (picture == 200).all(axis=2).sum() == 300 * 400
    assert side_by_side(left, right[:150, :100], titles=("a", "b")).shape == side_by_side(left, right[:, :225]).shape


@pytest.mark.parametrize(("count", "columns", "across", "down"), [(1, 4, 1, 1), (7, 4, 4, 2), (7, 3, 3, 3)])
@pytest.mark.parametrize("with_text", [False, True])
def test_contact_sheet(count, columns, across, down, with_text):
    pictures = [np.full((50 + 40 * i, 200, 3), 20 + i, np.uint8) for i in range(count)]
    text = {"captions": [f"{i:012d}.jpg" * 9 for i in range(count)], "title": "échantillons"} if with_text else {}
    sheet = contact_sheet(pictures, columns=columns, cell=100, **text)
    assert sheet.dtype == np.uint8
    assert across * 100 < sheet.shape[1] < across * 100 + 60
    assert sheet.shape[0] < down * 140 + 60
    for i, picture in enumerate(pictures):
        scale = 100 / max(picture.shape[:2])
        expected = round(picture.shape[0] * scale) * round(picture.shape[1] * scale)
        assert (sheet == 20 + i).all(axis=2).sum() == pytest.approx(expected, abs=20)  # the text may have this grey


def test_contact_sheet_refuses_what_does_not_fit():
    picture = np.zeros((50, 50, 3), np.uint8)
    with pytest.raises(ValueError, match="0 pictures"):
        contact_sheet([])
    with pytest.raises(ValueError, match="2 pictures, 1 captions"):
        contact_sheet([picture, picture], captions=["one"])


def test_save_picture_creates_folders_and_leaves_nothing_else(tmp_path: Path):
    path = tmp_path / "predictions" / "epoch 1" / "5001.png"
    for value in (0, 255):
        save_picture(np.full((40, 60, 3), value, np.uint8), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), np.full((40, 60, 3), 255))
    assert list(path.parent.iterdir()) == [path]


def test_save_picture_keeps_the_old_file_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a.png"
    save_picture(np.zeros((4, 6, 3), np.uint8), path)
    before = path.read_bytes()

    def full_disk(self: Image.Image, file: Path, **_: object) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_picture(np.ones((4, 6, 3), np.uint8), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_masks_that_come_one_at_a_time_are_drawn_as_those_that_come_together():
    boxes = [(300, 100, 400, 200), (350, 150, 500, 400), (0, 0, 700, 500)]
    masks = torch.cat([mask_of(box) for box in boxes])
    parts = [mask[y0:y1, x0:x1].flatten() for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True)]
    cropped = CroppedMasks(torch.cat(parts).byte(), boxes, (500, 700))
    instances = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor([1, 2, 3])}
    pictures = [draw_instances(grey_image(), instances | {"masks": some}, class_names=NAMES) for some in (masks, cropped)]
    np.testing.assert_array_equal(*pictures)
