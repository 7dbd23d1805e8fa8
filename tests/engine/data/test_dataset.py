"""engine/data/dataset.py and loader.py: what a sample is, that it depends on (seed, epoch, index) alone, and bad images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.augmentations import build_transforms
from engine.data.dataset import CocoDataset, read_image, sample_seed
from engine.data.loader import BatchLoader
from engine.data.pipeline import Augmentation
from engine.data.sampler import GlobalBatchSampler, ShardSampler

# Two workers are one too many for a machine with a single core, where torch says so.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

COLUMNS = {"boxes", "labels", "area", "iscrowd", "image_id", "seed"}


@pytest.fixture
def make_dataset(noise_set):
    """A function that makes the noise data set; `augmented` flips, changes colours and resizes."""
    images, annotations = noise_set

    def make(*, augmented=False, **options):
        if augmented:
            steps = [("horizontal_flip", {}), ("color_jitter", {}), ("albumentations/Affine", {"rotate": [-15, 15], "p": 0.5})]
            transforms = [transform for step in steps for transform in build_transforms(*step)]
            options["augmentation"] = Augmentation(transforms, min_sizes=[40, 48, 56], max_size=90)
        return CocoDataset(images, load_annotations(annotations), **options)

    return make


def assert_same(one, other):
    (image, target), (other_image, other_target) = one, other
    assert torch.equal(image, other_image)
    assert target.keys() == other_target.keys()
    for key, value in target.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(other_target[key])), key


def epoch_of(dataset, num_workers):
    sampler = GlobalBatchSampler(len(dataset), batch_size=2, epochs=2, seed=3)
    loader = BatchLoader(dataset, sampler, num_workers=num_workers, device=torch.device("cpu"))
    assert len(loader) == len(sampler) == 6
    return [sample for images, targets in loader for sample in zip(images, targets, strict=True)]


# ---- The sample ----


@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("with_masks", [False, True])
def test_a_sample_keeps_torchvisions_contract(make_dataset, augmented, with_masks):
    dataset = make_dataset(augmented=augmented, with_masks=with_masks)
    assert len(dataset) == 6
    for index in range(6):
        image, target = dataset[index]
        assert image.dtype == torch.uint8
        assert image.shape[0] == 3
        assert target.keys() == COLUMNS | ({"masks"} if with_masks else set())
        count = len(target["boxes"])
        assert count == 0 if index == 5 else 0 < count <= 2
        assert (target["boxes"].dtype, target["boxes"].shape) == (torch.float32, (count, 4))
        assert (target["labels"].dtype, target["labels"].shape) == (torch.int64, (count,))
        assert (target["area"].dtype, target["area"].shape) == (torch.float32, (count,))
        assert (target["iscrowd"].dtype, target["iscrowd"].shape) == (torch.int64, (count,))
        assert target["image_id"].dtype == torch.int64
        assert int(target["image_id"]) == 100 - index
        if with_masks:
            assert (target["masks"].dtype, target["masks"].shape) == (torch.uint8, (count, *image.shape[1:]))
            assert set(target["masks"].unique().tolist()) <= {0, 1}


def test_without_augmentation_the_sample_is_the_file(make_dataset, noise_set):
    image, target = make_dataset(with_masks=True)[2]
    pixels = np.asarray(Image.open(noise_set[0] / "2.png"))
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)
    assert target["boxes"].tolist() == [[3, 4, 18, 24], [12, 6, 26, 18]]
    assert target["labels"].tolist() == [1, 2]
    assert target["area"].tolist() == [300, 168]
    for mask, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        assert mask[top:bottom, left:right].all()
        assert mask.sum() == (bottom - top) * (right - left)


def test_a_set_says_its_classes_its_file_and_the_names_of_its_images(make_dataset, noise_set, minimal, write_json, tmp_path):
    dataset = make_dataset()
    assert [(category.id, category.name) for category in dataset.categories] == [(2, "b"), (5, "a")]
    assert dataset.path == noise_set[1]
    assert [dataset.name_of(index) for index in (0, 5)] == ["0.png", "5.png"]
    minimal["images"][0]["file_name"] = "some/folder/a.png"
    assert CocoDataset(tmp_path, load_annotations(write_json(minimal))).name_of(0) == "a.png"


def test_images_are_grouped_by_whether_they_are_wide(minimal, write_json, tmp_path):
    sizes = ((640, 480), (480, 640), (500, 500), (501, 500))
    minimal["images"] = [
        {"id": 7 + number, "file_name": f"{number}.png", "width": width, "height": height}
        for number, (width, height) in enumerate(sizes)
    ]
    annotations = load_annotations(write_json(minimal))
    groups = CocoDataset(tmp_path, annotations, aspect_ratio_grouping=True).shape_groups()
    assert groups.tolist() == [1, 0, 0, 1]
    assert CocoDataset(tmp_path, annotations).shape_groups() is None


def test_objects_without_a_mask_are_left_out_where_masks_are_asked_for(minimal, write_json, tmp_path):
    square = [[2, 2, 8, 2, 8, 8, 2, 8]]
    minimal["annotations"] = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": [i, 2, 6, 6], "area": 9, "segmentation": segmentation}
        for i, segmentation in enumerate([[], square, [[1, 1, 2, 2]]])
    ]
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    annotations = load_annotations(write_json(minimal))
    assert CocoDataset(tmp_path, annotations)[0][1]["boxes"][:, 0].tolist() == [0, 1, 2]
    target = CocoDataset(tmp_path, annotations, with_masks=True)[0][1]
    assert target["boxes"][:, 0].tolist() == [1]
    assert {len(target[column]) for column in ("labels", "area", "iscrowd", "masks")} == {1}


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1)])
def test_the_smallest_images_load_without_a_warning(minimal, write_json, tmp_path, size):
    minimal["images"][0] |= {"width": size[0], "height": size[1]}
    Image.new("RGB", size).save(tmp_path / "a.png")
    image, _ = CocoDataset(tmp_path, load_annotations(write_json(minimal)))[0]
    assert image.shape == (3, size[1], size[0])


def test_a_malformed_mask_is_named_with_its_annotation(minimal, write_json, tmp_path):
    minimal["annotations"][0] |= {"id": 55, "area": 9, "segmentation": {"size": [3, 3], "counts": [9]}}
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    path = write_json(minimal)
    with pytest.raises(UserError, match="annotation 55: the RLE's size") as caught:
        CocoDataset(tmp_path, load_annotations(path), with_masks=True)[0]
    assert str(path) in str(caught.value)


def test_an_augmentation_that_cannot_take_an_image_names_it(noise_set):
    images, annotations = noise_set
    transforms = build_transforms("albumentations/RandomCrop", {"height": 45, "width": 45})
    augmentation = Augmentation(transforms, min_sizes=[40], max_size=90)
    dataset = CocoDataset(images, load_annotations(annotations), augmentation=augmentation)
    assert dataset[2][0].shape == (3, 40, 40)
    with pytest.raises(UserError, match=r"0\.png.*[Cc]rop"):
        dataset[0]  # 40 pixels high


# ---- Determinism ----


def test_a_sample_depends_on_seed_epoch_and_index_alone(make_dataset):
    one, other = (make_dataset(augmented=True, with_masks=True, seed=5) for _ in range(2))
    keys = [(epoch, index) for epoch in (0, 1, 7) for index in range(6)]
    first = {key: one[key] for key in keys}
    np.random.default_rng()  # neither a global generator
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    for key in reversed(keys):  # nor the order of access
        assert_same(other[key], first[key])


def test_an_index_alone_is_of_the_first_epoch(make_dataset):
    dataset = make_dataset(augmented=True)
    assert_same(dataset[3], dataset[0, 3])


@pytest.mark.parametrize("change", ["epoch", "seed"])
def test_another_epoch_or_seed_gives_other_samples(make_dataset, change):
    dataset = make_dataset(augmented=True, seed=0)
    other, epoch = (dataset, 1) if change == "epoch" else (make_dataset(augmented=True, seed=1), 0)
    same = [torch.equal(dataset[0, i][0], other[epoch, i][0]) for i in range(6)]
    assert sum(same) < 3
    seeds = [dataset[0, i][1]["seed"] == other[epoch, i][1]["seed"] for i in range(6)]
    assert not any(seeds)


def test_sample_seeds_are_all_different_and_fit_a_signed_64_bit_number():
    keys = [(seed, epoch, index) for seed in (0, 1, 2) for epoch in range(20) for index in range(50)]
    seeds = {sample_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert min(seeds) >= 0
    assert 2**61 < max(seeds) < 2**63


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(make_dataset, num_workers):
    dataset = make_dataset(augmented=True, with_masks=True)
    alone = epoch_of(dataset, 0)
    assert len(alone) == 12
    for sample, expected in zip(epoch_of(dataset, num_workers), alone, strict=True):
        assert_same(sample, expected)


def test_loading_leaves_torchs_generator_where_it_was(make_dataset):
    before = torch.get_rng_state()
    epoch_of(make_dataset(augmented=True), 1)
    assert torch.equal(torch.get_rng_state(), before)


# ---- Images ----


def grey_ramp(dtype=np.uint8, highest=255):
    return np.linspace(0, highest, 256).astype(dtype).reshape(16, 16)


def three(channel):
    return np.stack([channel] * 3, axis=-1)


COLOURS = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (Image.fromarray(COLOURS), "rgb.png", COLOURS),
        (Image.fromarray(grey_ramp()), "grey.png", three(grey_ramp())),
        (Image.fromarray(grey_ramp() > 99), "bilevel.png", three(np.where(grey_ramp() > 99, 255, 0))),
        (Image.fromarray(np.dstack([COLOURS, grey_ramp()])), "rgba.png", COLOURS),
        (Image.fromarray(np.dstack([grey_ramp(), grey_ramp()])), "grey_alpha.png", three(grey_ramp())),
        (Image.fromarray(255 - np.dstack([COLOURS, grey_ramp() * 0 + 255])).convert("CMYK"), "cmyk.tif", 255 - COLOURS),
        (Image.fromarray(grey_ramp()).convert("P"), "palette.gif", three(grey_ramp())),
        (Image.fromarray(grey_ramp()).convert("P"), "palette.png", three(grey_ramp())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_of_every_kind_load_as_rgb(tmp_path, image, name, expected):
    image.save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, expected)


def test_a_jpeg_in_cmyk_loads_as_rgb(tmp_path):
    Image.new("CMYK", (16, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    pixels = read_image(tmp_path / "cmyk.jpg")
    assert pixels.shape == (8, 16, 3)
    np.testing.assert_allclose(pixels, np.broadcast_to([255, 0, 0], pixels.shape), atol=8)


@pytest.mark.parametrize("name", ["16_bit.png", "16_bit.tif"])
def test_sixteen_bits_are_scaled_down_not_clipped(tmp_path, name):
    Image.fromarray(grey_ramp(np.uint16, 65535)).save(tmp_path / name)
    np.testing.assert_allclose(read_image(tmp_path / name), three(grey_ramp()), atol=1)


def test_a_palette_with_transparency_loads_without_a_warning(tmp_path):
    image = Image.fromarray(grey_ramp()).convert("P")
    image.save(tmp_path / "clear.png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(read_image(tmp_path / "clear.png"), three(grey_ramp()))


def test_the_rotation_of_exif_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (10, 20, 3)


def test_an_image_larger_than_pillow_trusts_is_the_users_to_put_right(tmp_path, monkeypatch):
    Image.new("RGB", (20, 20)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"large\.png"):
        read_image(tmp_path / "large.png")


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garble(path):
    content = bytearray(path.read_bytes())
    content[1000:1010] = b"0123456789"
    path.write_bytes(content)


def enlarge(path):
    Image.new("RGB", (40, 20)).save(path)


BAD = {
    "truncated": (truncate, r"cannot be read: .*truncated"),
    "garbled": (garble, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read: cannot identify image file"),
    "a text": (lambda path: path.write_text("hello"), "cannot be read: cannot identify image file"),
    "missing": (Path.unlink, "no image file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "of another size": (enlarge, r"is 40 x 20 pixels, but .*bad\.json says 60 x 50 \(image 2\)"),
}


@pytest.fixture
def bad_set(tmp_path):
    """A function that makes a data set of four images, one of which it spoils."""

    def make(kind):
        rng = np.random.default_rng(0)
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (50, 60, 3), np.uint8)).save(tmp_path / f"{i}.png")
        BAD[kind][0](tmp_path / "2.png")
        images = [{"id": i, "file_name": f"{i}.png", "height": 50, "width": 60} for i in range(4)]
        content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        (tmp_path / "bad.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path, load_annotations(tmp_path / "bad.json"))

    return make


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_named_in_one_line(bad_set, tmp_path, kind):
    dataset = bad_set(kind)
    with pytest.raises(UserError, match=BAD[kind][1]) as caught:
        dataset[2]
    assert str(tmp_path / "2.png") in str(caught.value)
    assert "\n" not in str(caught.value)
    dataset[1], dataset[3]


@pytest.mark.parametrize("kind", ["missing", "of another size"])
def test_a_workers_error_arrives_as_it_was_raised(bad_set, kind):
    dataset = bad_set(kind)
    with pytest.raises(UserError) as expected:
        dataset[2]
    for num_workers in (0, 1):
        loader = BatchLoader(dataset, ShardSampler(4, batch_size=2), num_workers=num_workers, device=torch.device("cpu"))
        batches = iter(loader)
        assert [int(target["image_id"]) for target in next(batches)[1]] == [0, 1]
        with pytest.raises(UserError) as caught:
            next(batches)
        assert str(caught.value) == str(expected.value)
