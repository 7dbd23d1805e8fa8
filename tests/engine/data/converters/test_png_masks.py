"""engine/data/converters/png_masks.py: every mask pixel for pixel, in every layout and kind of picture."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from backbones.errors import UserError
from engine.data.annotations import load_annotations
from engine.data.converters.classes import Classes
from engine.data.converters.png_masks import convert_masks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ONE = Classes({"nucleus": 1}, "as given")
TWO = Classes({"cat": 1, "dog": 2}, "as given")
# Three objects; the second is in two pieces, and touches the third.
MAP = np.zeros((40, 60), np.uint8)
MAP[2:9, 3:20] = 1
MAP[20:30, 5:9] = MAP[20:30, 12:15] = 2
MAP[20:30, 15:21] = 3


@pytest.fixture
def put(tmp_path):
    """A function that writes an array or a Pillow image as a mask."""

    def write(name, mask):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(path)
        return path

    return write


def masks_of(coco):
    """(class name, mask) of each object, in order."""
    return [(coco.cats[a["category_id"]]["name"], coco.annToMask(a)) for a in coco.dataset["annotations"]]


def assert_same(found, expected):
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (_, ours), (_, theirs) in zip(found, expected, strict=True):
        assert (ours == theirs).all()


def palette(mask):
    image = Image.new("P", mask.shape[::-1])
    image.putdata(mask.ravel().tolist())
    image.putpalette([value for i in range(256) for value in ((i * 37) % 256, (i * 91) % 256, 7)])
    return image


def coloured(mask):
    colours = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 10], [10, 10, 201]], np.uint8)
    return Image.fromarray(colours[mask])


@pytest.mark.parametrize(
    "form",
    [
        lambda mask: mask,
        palette,
        coloured,
        lambda mask: mask.astype(np.uint16) * 300,
        lambda mask: mask.astype(np.int32) * 70_000,
        lambda mask: Image.fromarray(mask).convert("RGB"),
        lambda mask: Image.fromarray(mask).convert("LA"),
    ],
    ids=["grey", "palette", "colours", "16 bits", "32 bits", "grey as RGB", "grey with alpha"],
)
def test_a_map_of_instances(form, put, add_image, tmp_path, read):
    add_image("images/a.jpg")
    image = form(MAP)
    suffix = "tif" if isinstance(image, np.ndarray) and image.dtype == np.int32 else "png"
    put(f"maps/a.{suffix}", image)
    coco = read(convert_masks(tmp_path / "images", tmp_path / "maps", classes=ONE))
    found = masks_of(coco)
    expected = [("nucleus", value == MAP) for value in (1, 2, 3)]
    assert_same(sorted(found, key=lambda pair: pair[1].argmax()), sorted(expected, key=lambda pair: pair[1].argmax()))
    for annotation in coco.dataset["annotations"]:
        rows, columns = np.nonzero(coco.annToMask(annotation))
        assert annotation["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (annotation["area"], annotation["iscrowd"]) == (len(rows), 0)
    table = load_annotations(tmp_path / "written/coco.json")
    assert table.has_masks
    assert table.areas.tolist() == [annotation["area"] for annotation in coco.dataset["annotations"]]


def test_a_folder_of_masks_an_image(put, add_image, tmp_path, read):
    add_image("images/sub/a.png")
    put("masks/sub/a/1.png", (MAP == 2).astype(np.uint8) * 255)
    put("masks/sub/a/2.png", np.minimum(MAP, 1) * 200)  # overlaps the first
    put("masks/sub/a/empty.png", np.zeros_like(MAP))
    writer = convert_masks(tmp_path / "images", tmp_path / "masks")
    assert_same(masks_of(read(writer)), [("object", MAP == 2), ("object", MAP > 0)])
    assert writer.summary()[-1].startswith("1 left out, for their mask is empty (first: ")


def test_the_layout_of_the_data_science_bowl(put, add_image, tmp_path, read):
    for name in ("0a", "0b"):
        add_image(f"stage1/{name}/images/{name}.png")
        for value in (1, 2, 3):
            put(f"stage1/{name}/masks/{value}.png", (value == MAP).astype(np.uint8) * 255)
    coco = read(convert_masks(tmp_path / "stage1", classes=ONE))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["0a/images/0a.png", "0b/images/0b.png"]
    assert_same(masks_of(coco), [("nucleus", value == MAP) for value in (1, 2, 3)] * 2)


def test_one_mask_in_an_images_folder_is_a_mask_and_no_map(put, add_image, tmp_path, read):
    add_image("images/a.png")
    put("masks/a/a.png", MAP)
    assert_same(masks_of(read(convert_masks(tmp_path / "images", tmp_path / "masks"))), [("object", MAP > 0)])


def test_masks_within_the_folder_of_images_are_no_images(put, add_image, tmp_path):
    add_image("all/a.png")
    put("all/masks/a.png", MAP)
    assert [image.file_name for image in convert_masks(tmp_path / "all", tmp_path / "all/masks").images] == ["a.png"]


def test_of_a_map_of_classes_the_connected_regions_are_objects(put, add_image, tmp_path, read):
    add_image("images/a.png")
    put("maps/a.png", np.where(MAP == 3, 1, MAP).astype(np.uint8))
    coco = read(convert_masks(tmp_path / "images", tmp_path / "maps", classes=TWO, values="classes"))
    left = np.zeros_like(MAP)
    left[20:30, 5:9] = 1
    expected = [("cat", MAP == 1), ("cat", MAP == 3), ("dog", left), ("dog", (MAP == 2) & (left == 0))]
    assert_same(masks_of(coco), expected)


def test_regions_are_those_of_scipy(put, add_image, tmp_path):
    scipy_ndimage = pytest.importorskip("scipy.ndimage")
    mask = (np.random.default_rng(0).random((40, 60)) < 0.3).astype(np.uint8)
    add_image("images/a.png")
    put("maps/a.png", mask * 255)
    writer = convert_masks(tmp_path / "images", tmp_path / "maps", classes=ONE, values="binary")
    labels, count = scipy_ndimage.label(mask, np.ones((3, 3)))
    assert sorted(found["area"] for found in writer.objects) == sorted(np.bincount(labels.ravel())[1:].tolist())
    assert len(writer.objects) == count


def test_pixels_to_be_ignored_are_background(put, add_image, tmp_path, read):
    add_image("images/a.png")
    bordered = MAP.copy()
    bordered[0] = 255
    put("maps/a.png", bordered)
    coco = read(convert_masks(tmp_path / "images", tmp_path / "maps", ignore_value=255))
    assert_same(masks_of(coco), [("object", value == MAP) for value in (1, 2, 3)])
    three = Classes({"cat": 1, "dog": 2, "cow": 3}, "as given")
    with pytest.raises(UserError, match=r"a\.png has the value 255 \(row 0, column 0\), .*3 classes.*--ignore-value 255"):
        convert_masks(tmp_path / "images", tmp_path / "maps", classes=three, values="classes")
    with pytest.raises(
        UserError, match=r"has the value 3 \(row 20, column 15\), but the list of 2 classes gives the values 1 to 2\.$"
    ):
        convert_masks(tmp_path / "images", tmp_path / "maps", classes=TWO, values="classes", ignore_value=255)


def test_a_map_of_0_and_255_is_asked_about(put, add_image, tmp_path):
    add_image("images/a.png")
    put("maps/a.png", np.minimum(MAP, 1) * 255)
    writer = convert_masks(tmp_path / "images", tmp_path / "maps")
    assert len(writer.objects) == 1
    assert "--values binary" in writer.summary()[-1]


def test_an_empty_map_is_an_image_without_objects_and_no_map_is_no_image(put, add_image, tmp_path):
    for name in ("a", "b", "c"):
        add_image(f"images/{name}.png")
    put("maps/a.png", MAP)
    put("maps/b.png", np.zeros_like(MAP))
    writer = convert_masks(tmp_path / "images", tmp_path / "maps")
    assert [image.file_name for image in writer.images] == ["a.png", "b.png"]
    assert writer.summary()[-1].startswith("1 images left out, for they have no masks")
    assert len(convert_masks(tmp_path / "images", tmp_path / "maps", keep_unlabelled=True).images) == 3


# ---- Mistakes ----


def test_a_mask_of_another_size(put, add_image, tmp_path):
    add_image("images/a.png")
    put("maps/a.png", MAP.T)
    with pytest.raises(UserError, match=r"maps/a\.png is for 40 x 60 pixels, but .*images/a\.png has 60 x 40.*swapped"):
        convert_masks(tmp_path / "images", tmp_path / "maps")


def test_a_mask_without_image_and_one_that_cannot_be_read(put, add_image, tmp_path):
    add_image("images/a.png")
    put("maps/a.png", MAP)
    put("maps/b.png", MAP)
    with pytest.raises(UserError, match=r"no image in .*images for the mask .*maps/b\.png"):
        convert_masks(tmp_path / "images", tmp_path / "maps")
    (tmp_path / "maps/b.png").unlink()
    (tmp_path / "maps/a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"The mask .*maps/a\.png cannot be read"):
        convert_masks(tmp_path / "images", tmp_path / "maps")


def test_fractions_are_no_mask(put, add_image, tmp_path):
    add_image("images/a.png")
    put("maps/a.tif", MAP.astype(np.float32) / 7)
    with pytest.raises(UserError, match="no whole numbers as pixels"):
        convert_masks(tmp_path / "images", tmp_path / "maps")
    put("maps/a.tif", MAP.astype(np.float32))
    assert len(convert_masks(tmp_path / "images", tmp_path / "maps").objects) == 3


def test_masks_in_two_places(put, add_image, tmp_path):
    add_image("images/a.png")
    put("maps/a.png", MAP)
    put("maps/a/1.png", MAP)
    with pytest.raises(UserError, match="has masks in several places"):
        convert_masks(tmp_path / "images", tmp_path / "maps")


def test_classes_that_do_not_fit_the_masks(add_image, put, tmp_path):
    add_image("images/a.png")
    put("maps/a.png", MAP)
    with pytest.raises(UserError, match="need --classes"):
        convert_masks(tmp_path / "images", tmp_path / "maps", values="classes")
    with pytest.raises(UserError, match=r"one name for all, not 2\. .*--values classes"):
        convert_masks(tmp_path / "images", tmp_path / "maps", classes=TWO)


def test_folders_without_masks_or_of_another_layout(add_image, tmp_path, put):
    add_image("images/a.png")
    (tmp_path / "maps").mkdir()
    with pytest.raises(UserError, match=r"maps has no masks \(\.bmp, \.gif, \.png, \.tif, \.tiff\)"):
        convert_masks(tmp_path / "images", tmp_path / "maps")
    with pytest.raises(UserError, match="has no folders ID/images beside ID/masks"):
        convert_masks(tmp_path / "images")
    add_image("bowl/x/images/x.png")
    with pytest.raises(UserError, match=r"None of the 1 images in .* has masks"):
        convert_masks(tmp_path / "bowl")
    add_image("bowl/x/images/y.png")
    with pytest.raises(UserError, match="has 2 images, so that it cannot be told"):
        convert_masks(tmp_path / "bowl")


@pytest.mark.shared_data
@pytest.mark.parametrize("layout", ["bowl", "map"])
def test_nuclei_written_as_masks_come_back(shared, tmp_path, read, put, layout):
    """Real micrographs: their masks, decoded by pycocotools and saved as PNG, and read again."""
    data = shared / "data/dsb2018_small"
    with contextlib.redirect_stdout(io.StringIO()):
        before = COCO(str(next((data / "annotations").glob("*val*.json"))))
    chosen = before.dataset["images"][:12]
    expected = []
    for number, image in enumerate(chosen):
        name = f"{number:02}"
        path = tmp_path / (f"set/{name}/images/{name}.png" if layout == "bowl" else f"images/{name}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(next(data.rglob(image["file_name"])))
        masks = [before.annToMask(annotation) for annotation in before.imgToAnns[image["id"]]]
        expected += masks
        for value, mask in enumerate(masks) if layout == "bowl" else ():
            put(f"set/{name}/masks/{value:03}.png", mask * 255)
        if layout == "map":
            assert np.sum(masks, axis=0).max() == 1, "they overlap"
            put(
                f"maps/{name}.png",
                np.sum([m.astype(np.uint16) * v for v, m in enumerate(masks, start=1)], axis=0, dtype=np.uint16),
            )
    folders = (tmp_path / "set",) if layout == "bowl" else (tmp_path / "images", tmp_path / "maps")
    after = read(convert_masks(*folders, classes=ONE))
    assert len(expected) > 200
    assert_same(masks_of(after), [("nucleus", mask) for mask in expected])
    areas = [annotation["area"] for image in chosen for annotation in before.imgToAnns[image["id"]]]
    assert [annotation["area"] for annotation in after.dataset["annotations"]] == areas
