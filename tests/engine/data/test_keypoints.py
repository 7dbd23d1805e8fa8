"""Keypoints from the annotation file through the augmentation: in place, in order, and left and right told apart."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.augmentations import build_transforms
from engine.data.keypoints import mirrored
from engine.data.pipeline import Augmentation

PERSON = [
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
]  # fmt: skip
# torchvision's own table for a person, references/detection/coco_utils and transforms.
PERSON_MIRRORED = [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]


def write(path, *, categories, annotations):
    images = [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}]
    rows = [{"id": i, "image_id": 1, "bbox": [10, 10, 30, 30]} | row for i, row in enumerate(annotations)]
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return path


def test_a_person_is_mirrored_as_coco_s_own():
    assert mirrored(PERSON) == PERSON_MIRRORED


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["top", "right", "bottom", "left"], [0, 3, 2, 1]),
        (["Left Hand", "right hand"], [1, 0]),
        (["left_hand", "nose"], [0, 1]),
        (["bright", "cleft"], [0, 1]),
        ([], []),
    ],
)
def test_names_with_a_side_change_with_those_of_the_other(names, expected):
    assert mirrored(names) == expected


def test_classes_may_have_few_keypoints_or_none(tmp_path):
    categories = [
        {"id": 5, "name": "hand", "keypoints": ["left", "right"]},
        {"id": 2, "name": "stone"},
        {"id": 9, "name": "face", "keypoints": ["nose", "left_eye", "right_eye"]},
    ]
    annotations = [
        {"category_id": 5, "keypoints": [1, 2, 2, 3, 4, 1]},
        {"category_id": 2},
        {"category_id": 9, "keypoints": [1.5, 2, 2, 0, 0, 0, 7, 8, 2]},
        {"category_id": 9},
    ]
    table = load_annotations(write(tmp_path / "a.json", categories=categories, annotations=annotations))
    assert table.num_keypoints == 3
    assert table.keypoints.tolist() == [
        [[1, 2, 2], [3, 4, 1], [0, 0, 0]],
        [[0, 0, 0]] * 3,
        [[1.5, 2, 2], [0, 0, 0], [7, 8, 2]],
        [[0, 0, 0]] * 3,
    ]
    # The background, stone (id 2), hand (5), face (9).
    assert table.mirrored_keypoints.tolist() == [[0, 1, 2], [0, 1, 2], [1, 0, 2], [0, 2, 1]]


@pytest.mark.parametrize(
    ("category", "annotation", "message"),
    [
        ({"keypoints": "nose"}, {}, "category 1 has keypoints 'nose'"),
        ({"keypoints": ["nose"]}, {"keypoints": [1, 2]}, r"annotation 0 has keypoints \[1, 2\].*its category's 1"),
        ({"keypoints": ["nose"]}, {"keypoints": [1, None, 2]}, r"annotation 0 has keypoints \[1, None, 2\]"),
    ],
)
def test_malformed_keypoints_are_named(category, annotation, message, tmp_path):
    path = write(
        tmp_path / "a.json", categories=[{"id": 1, "name": "face"} | category], annotations=[{"category_id": 1} | annotation]
    )
    with pytest.raises(UserError, match=message):
        load_annotations(path)


def sample(points, *, size=(60, 80)):
    boxes = np.array([[0, 0, size[1], size[0]]], np.float32)
    keypoints = np.array([[[x, y, 2] for x, y in points]], np.float32)
    return np.zeros((*size, 3), np.uint8), {"boxes": boxes, "labels": np.array([1]), "keypoints": keypoints}


def augmentation(*steps, names, min_size=60):
    transforms = [transform for name, options in steps for transform in build_transforms(name, options)]
    table = np.stack([np.arange(len(names)), mirrored(names)])
    return Augmentation(transforms, min_sizes=[min_size], max_size=200, mirrored_keypoints=table)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("horizontal_flip", [[79 - 50, 20], [79 - 10, 5], [79 - 30, 40]]),  # left and right have changed
        ("vertical_flip", [[50, 59 - 20], [10, 59 - 5], [30, 59 - 40]]),  # a mirror, too
    ],
)
def test_flips_move_points_and_change_sides(step, expected):
    image, instances = sample([(10, 5), (50, 20), (30, 40)])
    flip = augmentation((step, {"p": 1.0}), names=["left", "right", "nose"])
    _, after = flip(image, instances, seed=0)
    assert after["keypoints"][0, :, :2].tolist() == expected
    assert after["keypoints"][0, :, 2].tolist() == [2, 2, 2]


def test_turns_do_not_change_sides():
    image, instances = sample([(10, 5), (50, 20)], size=(80, 80))
    turn = augmentation(("rotate90", {"p": 1.0}), names=["left", "right"], min_size=80)
    for seed in range(8):
        _, after = turn(image, instances, seed=seed)
        left, right = after["keypoints"][0, :, :2]
        # Whatever the turn, what was seen from left to right keeps its handedness about the middle.
        middle = np.array([39.5, 39.5])
        before = np.cross(np.array([10, 5, 0]) - [39.5, 39.5, 0], np.array([50, 20, 0]) - [39.5, 39.5, 0])[2]
        now = np.cross(np.append(left - middle, 0), np.append(right - middle, 0))[2]
        assert now == pytest.approx(before)


def test_resizing_scales_points_as_torchvision_does():
    image, instances = sample([(10, 5), (79, 59)])
    _, after = augmentation(names=["a", "b"], min_size=120)(image, instances, seed=0)
    assert after["keypoints"][0, :, :2].tolist() == [[20, 10], [158, 118]]


@given(seed=st.integers(0, 10**6), points=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 59)), min_size=2, max_size=2))
def test_points_stay_on_their_pixel_or_are_no_longer_labelled(seed, points):
    """Each point's pixel has a colour of its own, which says where it went; what was cropped away is 0."""
    image, instances = sample(points)
    for x, y in points:
        image[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 255
    steps = augmentation(
        ("horizontal_flip", {"p": 0.5}),
        ("albumentations/RandomCrop", {"height": 40, "width": 50, "p": 1.0}),
        names=["a", "b"],
        min_size=40,
    )
    out, after = steps(image, instances, seed=seed)
    for x, y, visibility in after["keypoints"].reshape(-1, 3):
        if visibility:
            assert out[int(y), int(x)].min() == 255
        else:
            assert (x, y) == (0, 0)
