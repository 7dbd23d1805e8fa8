"""engine/data/mixing.py: steps that see whole samples keep every column with its object, and masks on their own colour."""

import itertools
import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.errors import UserError
from engine.data.augmentations import build_steps
from engine.data.instances import mask_boxes
from engine.data.mixing import SampleStep
from engine.data.pipeline import Augmentation

seeds = st.integers(0, 2**63 - 1)
SIZE = 48
MOSAIC = ("mosaic", {"size": SIZE, "p": 1.0})
PASTE = ("copy_paste", {"p": 1.0})
CROP = ("random_crop", {"p": 1.0})
JITTER = ("large_scale_jitter", {"size": SIZE, "min_scale": 0.5})
FLIP = ("horizontal_flip", {})
CHAINS = [
    [PASTE],
    [MOSAIC],
    [CROP],
    [JITTER, FLIP, PASTE],
    [MOSAIC, FLIP, PASTE],
    [CROP, MOSAIC, JITTER, PASTE],
    [FLIP, ("rotate90", {}), CROP, ("copy_paste", {"p": 0.5})],
    [PASTE, CROP],
    [("rotate90", {}), ("albumentations/Transpose", {"p": 0.5}), FLIP, ("vertical_flip", {}), PASTE, MOSAIC],
]
CHAIN_IDS = ["-".join(name for name, _ in chain) for chain in CHAINS]


# ---- A data set whose objects tell which they are ----


class Scenes:
    """A data set of painted objects, each with a number of its own as its label, from which its other columns follow."""

    def __init__(self, samples, *, names=None):
        self.samples = samples
        self.names = names

    def __len__(self):
        return len(self.samples)

    def raw_sample(self, index):
        return self.samples[index]

    def name_of(self, index):
        return f"{index}.png"

    def numbers(self):
        return [int(number) for _, instances in self.samples for number in instances["labels"]]


def is_crowd(number):
    return number % 5 == 0


def paint(height, width, boxes, first):
    """A sample: objects that fill their boxes, a later one on top; the masks are what is seen of each."""
    image = np.full((height, width, 3), 255, np.uint8)
    numbers = np.arange(first, first + len(boxes))
    for number, (left, top, right, bottom) in zip(numbers, boxes, strict=True):
        image[top:bottom, left:right] = number
    masks = (image[None, ..., 0] == numbers[:, None, None]).astype(np.uint8)
    seen = masks.any(axis=(1, 2))
    numbers, masks = numbers[seen], masks[seen]
    points = np.zeros((len(numbers), 3, 3), np.float32)
    for place, mask in zip(points, masks, strict=True):
        y, x = np.argwhere(mask)[len(np.argwhere(mask)) // 2]
        place[0] = x, y, 2  # on the object
        place[1] = x, y, 0  # not labelled, though it has a place
    return image, {
        "boxes": mask_boxes(masks),
        "labels": numbers,
        "iscrowd": np.array([is_crowd(number) for number in numbers], np.int64),
        "area": masks.sum(axis=(1, 2)).astype(np.float32),
        "extra": np.stack([10 * numbers, 100 * numbers], axis=1),
        "masks": masks,
        "keypoints": points,
    }


@st.composite
def data_sets(draw, least=1):
    """One to four samples, with up to four objects each, perhaps none at all."""
    samples, first = [], 1
    for _ in range(draw(st.integers(least, 4))):
        height, width = draw(st.integers(24, 60)), draw(st.integers(24, 60))
        boxes = []
        for _ in range(draw(st.integers(0, 4))):
            w, h = draw(st.integers(4, width)), draw(st.integers(4, height))
            left, top = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
            boxes.append((left, top, left + w, top + h))
        samples.append(paint(height, width, boxes, first))
        first += len(boxes)
    return Scenes(samples)


def without(scenes, *columns):
    return Scenes([(image, {k: v for k, v in rows.items() if k not in columns}) for image, rows in scenes.samples])


def augmentation(*steps, min_sizes=None, keypoints=True, **options):
    built = [step for name, step_options in steps for step in build_steps(name, step_options)]
    table = np.tile(np.arange(3), (30, 1)) if keypoints else None
    return Augmentation(built, min_sizes=min_sizes, max_size=200, mirrored_keypoints=table, boxes_from_masks=True, **options)


def run(steps, scenes, *, index=0, seed=0, **options):
    keypoints = "keypoints" in scenes.samples[0][1]
    return augmentation(*steps, keypoints=keypoints, **options)(*scenes.samples[index], seed=seed, others=scenes)


def assert_in_step(image, out, scenes):
    """What holds after any chain."""
    before = scenes.samples[0][1]
    height, width = image.shape[:2]
    count = len(out["boxes"])
    assert image.dtype == np.uint8
    assert out.keys() == before.keys()
    assert {len(column) for column in out.values()} == {count}
    assert {key: column.dtype for key, column in out.items()} == {key: column.dtype for key, column in before.items()}
    numbers = out["labels"]
    assert set(numbers.tolist()) <= set(scenes.numbers())
    np.testing.assert_array_equal(out["iscrowd"], [is_crowd(number) for number in numbers])
    np.testing.assert_array_equal(out["extra"], np.stack([10 * numbers, 100 * numbers], axis=1))
    assert (out["boxes"] >= 0).all()
    assert (out["boxes"] <= [width, height, width, height]).all()
    assert (out["boxes"][:, 2:] - out["boxes"][:, :2] >= 0.999).all()
    assert (out["area"] > 0).all()
    if "masks" in out:
        assert out["masks"].shape == (count, height, width)
        assert set(np.unique(out["masks"])) <= {0, 1}
        assert out["masks"].any(axis=(1, 2)).all()
        np.testing.assert_array_equal(out["area"], out["masks"].sum(axis=(1, 2)))
        assert np.abs(out["boxes"] - mask_boxes(out["masks"])).max(initial=0) <= 1
        assert (out["masks"].sum(axis=0) <= 1).all()  # as in the data: no pixel is seen of two objects
    if "keypoints" in out:
        places, visibility = out["keypoints"][..., :2], out["keypoints"][..., 2]
        assert (places[visibility == 0] == 0).all()
        assert (places[visibility > 0] >= 0).all()
        assert (places[visibility > 0] < [width, height]).all()
        assert (visibility[:, 1:] == 0).all()


# ---- Whatever the chain ----


@pytest.mark.parametrize("chain", CHAINS, ids=CHAIN_IDS)
@settings(max_examples=20)
@given(data_sets(), seeds, st.booleans())
def test_columns_stay_in_step_through_any_chain(chain, scenes, seed, resized):
    size = [37] if resized and JITTER not in chain else None
    image, out = run(chain, scenes, seed=seed, min_sizes=size)
    assert_in_step(image, out, scenes)


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if PASTE not in chain and len(chain) < 4], ids=str)
@settings(max_examples=20)
@given(data_sets(), seeds)
def test_they_stay_in_step_without_masks_or_keypoints(chain, scenes, seed):
    for columns in (["masks"], ["keypoints"], ["masks", "keypoints"]):
        if "masks" in columns and any(name == "copy_paste" for name, _ in chain):
            continue
        fewer = without(scenes, *columns)
        assert_in_step(*run(chain, fewer, seed=seed), fewer)


@pytest.mark.parametrize("chain", CHAINS, ids=CHAIN_IDS)
@settings(max_examples=20)
@given(data_sets(), seeds)
def test_a_mask_covers_the_colour_of_its_object_alone(chain, scenes, seed):
    resize = cv2.resize

    def without_blending(pixels, size, interpolation):
        return resize(pixels, size, interpolation=cv2.INTER_NEAREST)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "resize", without_blending)  # so that every pixel has the colour of one object
        image, out = run(chain, scenes, seed=seed)
    for number, mask in zip(out["labels"], out["masks"], strict=True):
        assert (image[mask > 0] == number).all()


@pytest.mark.parametrize("chain", [[PASTE], [CROP], [("copy_paste", {"p": 1.0, "min_visible": 0.0}), CROP]], ids=str)
@settings(max_examples=40)
@given(st.data(), seeds)
def test_without_scaling_masks_are_exactly_what_is_seen(chain, data, seed):
    """Samples of one size are not resized: every pixel says whose it is."""
    height, width = data.draw(st.integers(24, 40)), data.draw(st.integers(24, 40))
    samples, first = [], 1
    for _ in range(2):
        boxes = []
        for _ in range(data.draw(st.integers(0, 4))):
            w, h = data.draw(st.integers(4, width)), data.draw(st.integers(4, height))
            left, top = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
            boxes.append((left, top, left + w, top + h))
        samples.append(paint(height, width, boxes, first))
        first += len(boxes)
    scenes = Scenes(samples)
    image, out = run(chain, scenes, seed=seed)
    for number, mask, points in zip(out["labels"], out["masks"], out["keypoints"], strict=True):
        x, y, visibility = points[0]
        if visibility:
            assert image[int(y), int(x), 0] == number
        if (out["labels"] == number).sum() == 1:  # an image may be its own partner
            np.testing.assert_array_equal(image[..., 0] == number, mask > 0)
        else:
            assert (image[mask > 0] == number).all()


@pytest.mark.parametrize("chain", [[CROP, CROP], [FLIP, CROP, JITTER], [CROP, JITTER, ("rotate90", {})]], ids=str)
@settings(max_examples=20)
@given(data_sets(), seeds)
def test_a_sample_by_itself_gains_no_rows_and_keeps_their_order(chain, scenes, seed):
    numbers = run(chain, scenes, seed=seed)[1]["labels"].tolist()
    assert numbers == sorted(set(numbers))
    assert set(numbers) <= set(scenes.samples[0][1]["labels"].tolist())
    fewer = [run(chain[:end], scenes, seed=seed)[1]["labels"].tolist() for end in range(1, len(chain) + 1)]
    assert all(set(after) <= set(before) for before, after in itertools.pairwise(fewer))


@pytest.mark.parametrize("chain", CHAINS, ids=CHAIN_IDS)
def test_images_without_objects_go_through(chain):
    scenes = Scenes([paint(40, 50, [], 1), paint(30, 30, [], 1)])
    for seed in range(4):
        image, out = run(chain, scenes, seed=seed)
        assert_in_step(image, out, scenes)
        assert len(out["boxes"]) == 0


# ---- Random choices ----

FOUR = Scenes(
    [
        paint(40, 50, [(5, 5, 20, 25), (25, 8, 45, 30)], 1),
        paint(50, 40, [(2, 2, 18, 30), (20, 25, 38, 48)], 6),
        paint(44, 44, [(10, 10, 30, 30)], 11),
        paint(36, 60, [], 16),
    ]
)


@pytest.mark.parametrize("chain", CHAINS, ids=CHAIN_IDS)
def test_a_seed_decides_all(chain):
    first = [run(chain, FOUR, seed=seed) for seed in range(8)]
    for seed in reversed(range(8)):
        image, out = run(chain, FOUR, seed=seed)
        np.testing.assert_array_equal(image, first[seed][0])
        for key, column in out.items():
            np.testing.assert_array_equal(column, first[seed][1][key])
    assert len({image.tobytes() for image, _ in first}) > 3


@pytest.mark.parametrize("chain", CHAINS, ids=CHAIN_IDS)
def test_neither_the_sample_nor_its_partners_are_written_to(chain):
    kept = [(image.copy(), {key: column.copy() for key, column in rows.items()}) for image, rows in FOUR.samples]
    for image, rows in FOUR.samples:
        for array in (image, *rows.values()):
            array.flags.writeable = False
    for seed in range(6):
        run(chain, FOUR, seed=seed)
    for (image, rows), (image_before, rows_before) in zip(FOUR.samples, kept, strict=True):
        np.testing.assert_array_equal(image, image_before)
        for key, column in rows.items():
            np.testing.assert_array_equal(column, rows_before[key])


@pytest.mark.parametrize("name", ["copy_paste", "mosaic", "random_crop"])
def test_p_is_how_often_it_happens(name):
    options = {"p": 0.25} | ({"size": SIZE} if name == "mosaic" else {})
    changed = [
        not np.array_equal(run([(name, options)], FOUR, index=2, seed=seed)[0], FOUR.samples[2][0]) for seed in range(400)
    ]
    # An image pasted onto itself is as before, and the fourth has nothing to paste.
    assert sum(changed) / 400 == pytest.approx(0.25 * (2 / 4 if name == "copy_paste" else 1), abs=0.06)


def test_every_image_is_a_partner():
    numbers = {int(n) for seed in range(60) for n in run([PASTE], FOUR, index=3, seed=seed)[1]["labels"]}
    assert numbers == {1, 2, 6, 7, 11}


class Counting(SampleStep):
    """A step that keeps what it was given."""

    partners = 2

    def __init__(self):
        super().__init__(p=1.0)
        self.seen = []

    def __call__(self, sample, partners, generator):
        self.seen.append([sample, *partners])
        return sample


def test_partners_go_through_the_single_sample_steps_before_and_through_no_other():
    counting, flip = Counting(), ("horizontal_flip", {"p": 1.0})
    before = [step for name, options in (JITTER, flip, PASTE) for step in build_steps(name, options)]
    after = build_steps("vertical_flip", {"p": 1.0})
    steps = Augmentation([*before, counting, *after], min_sizes=None, max_size=100, mirrored_keypoints=np.zeros((30, 3), int))
    for seed in range(20):
        image, _ = steps(*FOUR.samples[0], seed=seed, others=FOUR)
        ((given_image, _), *partners) = counting.seen.pop()
        np.testing.assert_array_equal(image, given_image[::-1])
        for partner, rows in partners:
            assert partner.shape == (SIZE, SIZE, 3)
            assert len({(number - 1) // 5 for number in rows["labels"].tolist()}) <= 1  # nothing was pasted into it


def test_a_partner_that_an_augmentation_cannot_take_is_named():
    scenes = Scenes([paint(40, 40, [(3, 3, 20, 20)], 1)] + [paint(10, 10, [(3, 3, 9, 9)], 6)] * 20)
    crop = ("albumentations/RandomCrop", {"height": 20, "width": 20, "p": 1.0})
    with pytest.raises(UserError, match=r"with \d+\.png, which is mixed in: an augmentation cannot take it"):
        run([crop, PASTE], scenes)


# ---- Copy-paste ----


def paste(target, partner, seed=0, **options):
    (step,) = build_steps("copy_paste", {"p": 1.0, **options})
    return step(target, [partner], np.random.default_rng(seed))


def test_what_is_pasted_hides_what_is_under_it():
    target = paint(40, 40, [(0, 0, 20, 20), (22, 22, 38, 38)], 1)
    target[1]["keypoints"][0, 0] = 15, 10, 2
    partner = paint(40, 40, [(10, 0, 30, 20)], 7)
    image, out = paste(target, partner)
    assert out["labels"].tolist() == [1, 2, 7]
    assert out["boxes"].tolist() == [[0, 0, 10, 20], [22, 22, 38, 38], [10, 0, 30, 20]]
    assert out["area"].tolist() == [200, 256, 400]
    assert out["keypoints"][0, 0].tolist() == [0, 0, 0]  # covered
    assert out["keypoints"][1, 0, 2] == 2
    assert (image[:20, 10:30] == 7).all()
    assert (image[:20, :10] == 1).all()


@pytest.mark.parametrize(("min_visible", "labels"), [(0.0, [1, 7]), (0.2, [1, 7]), (0.3, [7])])
def test_an_object_of_which_too_little_is_left_is_dropped(min_visible, labels):
    out = paste(paint(40, 40, [(0, 0, 20, 20)], 1), paint(40, 40, [(5, 0, 30, 20)], 7), min_visible=min_visible)[1]
    assert out["labels"].tolist() == labels


def test_an_object_under_another_is_gone_whatever_is_asked():
    out = paste(paint(40, 40, [(5, 5, 20, 20)], 1), paint(40, 40, [(5, 0, 30, 20)], 7), min_visible=0.0)[1]
    assert out["labels"].tolist() == [7]


def test_crowd_regions_are_never_pasted_but_cut_and_kept_to_the_last_pixel():
    target = paint(40, 40, [(0, 0, 20, 20)], 5)  # a crowd region
    assert target[1]["iscrowd"].tolist() == [1]
    image, out = paste(target, paint(40, 40, [(0, 0, 40, 40)], 10))
    assert image is target[0]  # a crowd region alone: nothing to paste
    out = paste(target, paint(40, 40, [(0, 0, 40, 19)], 7), min_visible=0.5)[1]
    assert out["labels"].tolist() == [5, 7]
    assert out["boxes"][0].tolist() == [0, 19, 20, 20]
    assert out["area"][0] == 20


def test_objects_to_paste_are_drawn_up_to_the_most():
    target, partner = paint(40, 40, [], 1), paint(40, 40, [(x, 0, x + 6, 6) for x in range(0, 40, 10)], 1)
    drawn = [tuple(paste(target, partner, seed)[1]["labels"].tolist()) for seed in range(200)]
    assert {len(labels) for labels in drawn} == {1, 2, 3, 4}
    assert len(set(drawn)) == 15  # every selection but the empty one
    assert {len(paste(target, partner, seed, max_objects=2)[1]["labels"]) for seed in range(50)} == {1, 2}


@settings(max_examples=40)
@given(st.integers(20, 60), st.integers(20, 60), st.integers(0, 1000))
def test_a_partner_of_another_size_is_fitted_into_the_image(height, width, seed):
    target, partner = paint(30, 50, [], 1), paint(height, width, [(0, 0, width, height)], 7)
    image, out = paste(target, partner, seed)
    left, top, right, bottom = out["boxes"][0]
    factor = min(30 / height, 50 / width)
    np.testing.assert_allclose([right - left, bottom - top], [width * factor, height * factor], atol=0.51 + 1e-4)
    seen = image[..., 0] == 7
    np.testing.assert_array_equal(seen, out["masks"][0] > 0)


# ---- Mosaic ----


def test_a_mosaic_has_four_images_around_a_centre():
    colours = Scenes([paint(40, 40, [(0, 0, 40, 40)], 1 + number) for number in range(4)])
    for seed in range(20):
        image, out = run([("mosaic", {"size": 64, "min_scale": 1.0, "min_visible": 0.0, "p": 1.0})], colours, seed=seed)
        assert image.shape == (64, 64, 3)
        # As large as the square, each fills its quarter: the boxes meet in a point.
        assert len(out["boxes"]) == 4
        assert out["area"].sum() == 64 * 64
        centre_x, centre_y = next(box[2:] for box in out["boxes"] if box[0] == box[1] == 0)
        assert 16 <= centre_x <= 48
        assert 16 <= centre_y <= 48
        quarters = {
            (0, 0, centre_x, centre_y),
            (centre_x, 0, 64, centre_y),
            (0, centre_y, centre_x, 64),
            (centre_x, centre_y, 64, 64),
        }
        assert {tuple(box) for box in out["boxes"].tolist()} == quarters
        assert out["labels"].tolist().count(1) >= 1  # the sample itself


def test_small_images_lie_at_the_centre_on_the_mean_colour():
    scenes = Scenes([paint(40, 40, [(0, 0, 40, 40)], 1)])
    image, out = run([("mosaic", {"size": 80, "min_scale": 0.2, "max_scale": 0.2, "margin": 0.5, "p": 1.0})], scenes)
    assert sorted(out["boxes"].tolist()) == [[24, 24, 40, 40], [24, 40, 40, 56], [40, 24, 56, 40], [40, 40, 56, 56]]
    assert (image[24:56, 24:56] == 1).all()
    assert (image[:24] == [124, 116, 104]).all()


@pytest.mark.parametrize(("min_visible", "kept"), [(0.0, True), (0.9, False)])
def test_what_a_mosaic_cuts_too_small_is_dropped(min_visible, kept):
    scenes = Scenes([paint(40, 40, [(0, 0, 40, 40)], 1)])
    options = {"size": 40, "min_scale": 1.0, "margin": 0.5, "min_visible": min_visible, "p": 1.0}
    assert bool(len(run([("mosaic", options)], scenes)[1]["boxes"])) == kept


# ---- Crop ----


@settings(max_examples=60)
@given(data_sets(), st.floats(0, 1), st.booleans(), seeds)
def test_a_crop_keeps_what_it_promises(scenes, min_visible, keep_object, seed):
    image, before = scenes.samples[0]
    options = {"p": 1.0, "min_scale": 0.2, "min_visible": min_visible, "keep_object": keep_object}
    (step,) = build_steps("random_crop", options)
    out_image, out = step((image, before), [], np.random.default_rng(seed))
    assert_in_step(out_image, out, scenes)
    for side, whole in zip(out_image.shape[:2], image.shape[:2], strict=True):
        assert math.floor(0.2 * whole) <= side <= whole
    # Where the cut lies: the only place where its pixels are found in the image, if there is just one.
    height, width = out_image.shape[:2]
    places = [
        (left, top)
        for top in range(image.shape[0] - height + 1)
        for left in range(image.shape[1] - width + 1)
        if np.array_equal(image[top : top + height, left : left + width], out_image)
    ]
    assert places
    if len(places) == 1:
        (left, top) = places[0]
        cut = before["boxes"].clip([left, top] * 2, [left + width, top + height] * 2)
        share = (cut[:, 2:] - cut[:, :2]).clip(0).prod(axis=1) / (before["boxes"][:, 2:] - before["boxes"][:, :2]).prod(axis=1)
        masks = before["masks"][:, top : top + height, left : left + width]
        clear = np.abs(share - min_visible) > 1e-3
        kept = np.isin(before["labels"], out["labels"])
        expected = masks.any(axis=(1, 2)) & ((share >= min_visible) | (before["iscrowd"] > 0))
        np.testing.assert_array_equal(kept[clear], expected[clear])
        np.testing.assert_array_equal(out["masks"], masks[kept])
    objects = before["iscrowd"] == 0
    if keep_object and objects.any():
        areas = dict(zip(out["labels"].tolist(), out["area"].tolist(), strict=True))
        whole = [areas.get(int(n)) == area for n, area in zip(before["labels"][objects], before["area"][objects], strict=True)]
        assert any(whole)


def test_an_object_as_large_as_the_image_is_kept_whole():
    scenes = Scenes([paint(40, 30, [(0, 0, 30, 40)], 1)])
    for seed in range(10):
        assert run([CROP], scenes, seed=seed)[1]["boxes"].tolist() == [[0, 0, 30, 40]]


def test_crops_lie_anywhere():
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(40)[None], np.arange(40)[:, None]
    nothing = paint(40, 40, [], 1)[1]
    (step,) = build_steps("random_crop", {"min_scale": 0.5, "max_scale": 0.5, "p": 1.0})
    corners = [step((image, nothing), [], np.random.default_rng(seed))[0][0, 0, :2].tolist() for seed in range(300)]
    for axis in (0, 1):
        assert {corner[axis] for corner in corners} == set(range(21))
