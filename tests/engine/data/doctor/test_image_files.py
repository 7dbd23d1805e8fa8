"""What is said of image files of every kind, and which are taken for the same picture."""

import warnings

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from engine.data.doctor.duplicates import Pictures, check_duplicates
from engine.data.doctor.image_checks import check_images
from engine.data.doctor.image_files import examine, glance

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def picture():
    """Smooth, so that JPEG keeps it."""
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def kinds(path, height=HEIGHT, width=WIDTH):
    return [kind for kind, _ in examine(path, height, width).faults]


def turned(picture, path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, "JPEG", exif=exif)


def frames(picture, path):
    picture.save(path, "GIF", save_all=True, append_images=[ImageEnhance.Brightness(picture).enhance(0.5)])


def sixteen(picture, path):
    Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 256).save(path, "PNG")


FORMS = {
    "JPEG": (lambda p, path: p.save(path, "JPEG"), []),
    "PNG": (lambda p, path: p.save(path, "PNG"), []),
    "upright": (lambda p, path: turned(p, path, 1), []),
    "on its side": (lambda p, path: turned(p, path, 8), ["exif_rotation"]),
    "CMYK": (lambda p, path: p.convert("CMYK").save(path, "JPEG"), ["cmyk_image"]),
    "16 bits": (sixteen, ["16_bit_image"]),
    "float": (lambda p, path: p.convert("F").save(path, "TIFF"), ["16_bit_image"]),
    "palette": (lambda p, path: p.quantize(8).save(path, "PNG"), ["palette_image"]),
    "grey": (lambda p, path: p.convert("L").save(path, "PNG"), ["grey_image"]),
    "one bit": (lambda p, path: p.convert("1").save(path, "PNG"), ["grey_image"]),
    "transparent": (lambda p, path: p.convert("RGBA").save(path, "PNG"), ["transparent_image"]),
    "grey, transparent": (lambda p, path: p.convert("LA").save(path, "PNG"), ["grey_image", "transparent_image"]),
    "animated": (frames, ["palette_image", "several_frames"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_images(tmp_path, picture, form):
    save, expected = FORMS[form]
    save(picture, tmp_path / "a")
    assert kinds(tmp_path / "a") == expected
    assert glance(tmp_path / "a", HEIGHT, WIDTH) is None
    if form != "one bit":  # whose thumb is dithered
        same = np.frombuffer(examine(tmp_path / "a", HEIGHT, WIDTH).thumb, np.uint8).astype(float)
        picture.save(tmp_path / "plain", "PNG")
        plain = np.frombuffer(examine(tmp_path / "plain", HEIGHT, WIDTH).thumb, np.uint8).astype(float)
        assert np.corrcoef(same, plain)[0, 1] > 0.9


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN = {
    "missing": (lambda path: path.unlink(), "missing_image", True),
    "text": (lambda path: path.write_text("hello"), "unreadable_image", True),
    "empty": (lambda path: path.write_bytes(b""), "truncated_image", True),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "unreadable_image", True),
    "half": (half, "truncated_image", False),
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_findings(tmp_path, picture, case, image_format):
    picture.save(tmp_path / "a", image_format)
    spoil, kind, by_header = BROKEN[case]
    spoil(tmp_path / "a")
    found = kinds(tmp_path / "a")
    # Not every decoder says why.
    assert found[-1] == kind or (case == "half" and found[-1] == "unreadable_image")
    assert by_header is False or glance(tmp_path / "a", HEIGHT, WIDTH) is not None


def test_no_bytes_make_it_raise(tmp_path, picture):
    rng = np.random.default_rng(1)
    for image_format in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        picture.save(tmp_path / "sound", image_format)
        content = bytearray((tmp_path / "sound").read_bytes())
        for _ in range(60):
            spoiled = content.copy()
            for place in rng.integers(0, len(content), 6):
                spoiled[place] = rng.integers(0, 256)
            (tmp_path / "a").write_bytes(spoiled)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                examine(tmp_path / "a", HEIGHT, WIDTH)
                glance(tmp_path / "a", HEIGHT, WIDTH)


def test_another_size(tmp_path, picture):
    picture.save(tmp_path / "a", "PNG")
    assert kinds(tmp_path / "a", WIDTH, HEIGHT) == ["wrong_image_size"]
    turned(picture, tmp_path / "a", 6)
    facts = examine(tmp_path / "a", WIDTH, HEIGHT)
    assert "EXIF" in facts.faults[0][1]
    assert glance(tmp_path / "a", WIDTH, HEIGHT) == facts.faults[0]


def test_an_image_larger_than_pillow_trusts_is_unreadable(tmp_path, picture, monkeypatch):
    picture.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert kinds(tmp_path / "a.png") == ["unreadable_image"]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH - 1)  # of which Pillow only warns
    images = [(0, {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH})]
    assert check_images(tmp_path, images, split="train")[0] == []


# ---- The same picture ----


def pictures(folder, split, saved):
    """Saves pictures by name; what is known of them."""
    (folder / split).mkdir()
    images = []
    for number, (name, save) in enumerate(saved.items()):
        save(folder / split / name)
        images.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
    _, facts = check_images(folder / split, list(enumerate(images)), split=split)
    return Pictures(split, folder / split, images, facts)


def smooth(seed, *, low=0, high=256):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(low, high, (5, 6, 3), np.uint8)
    return Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def test_the_same_picture_in_both_splits_is_found_and_others_are_not(tmp_path):
    train = {f"{seed}.png": smooth(seed).save for seed in range(100)}
    val = {f"{seed}.png": smooth(seed).save for seed in range(1000, 1040)}
    val["copy.png"] = smooth(3).save
    val["worse.jpg"] = lambda path: smooth(5).save(path, quality=40)
    val["darker.png"] = ImageEnhance.Brightness(smooth(8)).enhance(0.7).save
    val["larger.png"] = smooth(9).resize((3 * WIDTH, 3 * HEIGHT)).save
    found = check_duplicates([pictures(tmp_path, "train", train), pictures(tmp_path, "val", val)])
    assert {(f.split, f.kind, f.file) for f in found} == {
        ("train", "image_in_train_and_val", "3.png"),
        ("train", "similar_image_in_train_and_val", "5.png"),
        ("train", "similar_image_in_train_and_val", "8.png"),
        ("train", "similar_image_in_train_and_val", "9.png"),
    }
    assert {f.twin.rpartition("/")[2] for f in found} == {"copy.png", "worse.jpg", "darker.png", "larger.png"}


def test_blank_images_are_not_the_same_picture_unless_they_are_equal(tmp_path):
    train = {"black.png": Image.new("RGB", (WIDTH, HEIGHT)).save, "noise.png": smooth(0, high=3).save}
    val = {"white.png": Image.new("RGB", (WIDTH, HEIGHT), "white").save, "black.bmp": Image.new("RGB", (WIDTH, HEIGHT)).save}
    found = check_duplicates([pictures(tmp_path, "train", train), pictures(tmp_path, "val", val)])
    assert [(f.kind, f.file) for f in found] == [("similar_image_in_train_and_val", "black.png")]


def test_a_file_twice_in_a_split(tmp_path):
    split = pictures(tmp_path, "train", {"a.png": smooth(1).save, "b.png": smooth(2).save, "c.png": smooth(1).save})
    assert [(f.kind, f.file, f.message) for f in check_duplicates([split])] == [
        ("duplicate_image", "c.png", "the same bytes as a.png (image 0)")
    ]


def test_broken_images_are_nobodys_twin(tmp_path):
    broken = {f"{name}.png": lambda path: path.write_bytes(b"broken") for name in "ab"}
    assert check_duplicates([pictures(tmp_path, "train", broken), pictures(tmp_path, "val", broken)]) == []
