"""One image file, looked at once: whether it can be read, what it is, and the hashes it is recognised by."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF's tag; 1 is upright
_TURNED = (5, 6, 7, 8)  # those that make a wide image a tall one
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    KeyError,
    OverflowError,
    Image.DecompressionBombError,
)
THUMB = 32  # pixels: the side of the small grey copy
_HASH = (9, 8)  # width, height of what the difference hash compares


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is found in a file: faults as (kind, message), and what it looks like, if it could be read."""

    faults: tuple[tuple[str, str], ...]
    digest: bytes = b""  # of the file's bytes
    hash: int = 0  # 64 bits: whether each grey pixel is brighter than the next, in a copy of 9 x 8
    thumb: bytes = b""  # THUMB x THUMB grey pixels


def examine(path: Path, height: int, width: int) -> ImageFacts:
    """Decode an image file, once. No file makes it raise.

    Args:
        height: as the annotations state it, pixels.
        width: likewise.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return ImageFacts((("missing_image", f"there is no file {path}"),))
    except OSError as error:
        return ImageFacts((("unreadable_image", f"{path}: {error.strerror}"),))
    digest = hashlib.blake2b(content, digest_size=16).digest()
    if not content:
        return ImageFacts((("truncated_image", f"{path} is an empty file"),), digest)
    faults: list[tuple[str, str]] = []
    try:
        with Image.open(io.BytesIO(content)) as image:
            faults += _of_size(path, image, height, width)
            faults += _of_form(image)
            image.load()
            small = _grey(image).resize((THUMB, THUMB), Image.Resampling.BOX)
            cells = np.asarray(_grey(image).resize(_HASH, Image.Resampling.BOX))
    except _BROKEN as error:
        cut = any(word in str(error).lower() for word in ("truncated", "unexpected end", "incomplete"))
        kind = "truncated_image" if cut else "unreadable_image"
        faults = [fault for fault in faults if fault[0] == "wrong_image_size"]
        # Pillow names the buffer that it was given.
        message = str(error) if "BytesIO" not in str(error) else "cannot identify image file"
        return ImageFacts((*faults, (kind, f"{path} cannot be read: {message}")), digest)
    bits = np.packbits(cells[:, 1:] > cells[:, :-1])
    return ImageFacts(tuple(faults), digest, int.from_bytes(bits.tobytes(), "big"), small.tobytes())


def glance(path: Path, height: int, width: int) -> tuple[str, str] | None:
    """The fault (kind, message) of a file that its header shows, without decoding it: missing, no image, of another size."""
    try:
        with Image.open(path) as image:
            return next(iter(_of_size(path, image, height, width)), None)
    except FileNotFoundError:
        return "missing_image", f"there is no file {path}"
    except _BROKEN as error:
        return "unreadable_image", f"{path} cannot be read: {error}"


def _of_size(path: Path, image: Image.Image, height: int, width: int) -> list[tuple[str, str]]:
    if image.size == (width, height):
        return []
    message = f"{path} is {image.width} x {image.height} pixels, the annotations say {width} x {height}"
    turned = _orientation(image) in _TURNED and image.size == (height, width)
    return [("wrong_image_size", message + (", as its EXIF rotation would have it, which training does not apply" * turned))]


def _orientation(image: Image.Image) -> int:
    # Of other formats, PNG for one, Pillow would have to read the pixels first.
    if image.format not in ("JPEG", "MPO", "WEBP", "TIFF"):
        return 1
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _of_form(image: Image.Image) -> list[tuple[str, str]]:
    faults = []
    mode, turn = image.mode, _orientation(image)
    if turn not in (0, 1):
        message = (
            f"EXIF orientation {turn}, which training does not apply: labelled as a viewer shows it, its boxes are misplaced"
        )
        faults.append(("exif_rotation", message))
    if mode.startswith("I;16"):
        faults.append(
            ("16_bit_image", f"{mode}: values are divided by 256, which leaves little of an image that is dark in 16 bits")
        )
    elif mode in ("I", "F"):
        faults.append(("16_bit_image", f"{mode}: 32 bits a value, which are cut at 255: save it with 8 bits"))
    elif mode == "CMYK":
        faults.append(("cmyk_image", "CMYK: it is converted without a colour profile, its colours are off"))
    elif mode == "P":
        faults.append(("palette_image", "palette: it is converted to RGB"))
    elif mode in ("1", "L", "LA"):
        faults.append(("grey_image", "grey: all three channels are the same"))
    if mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        faults.append(("transparent_image", "transparency: it is left out, what lies below shows"))
    if image.format in ("GIF", "TIFF", "WEBP", "PNG") and getattr(image, "n_frames", 1) > 1:
        faults.append(("several_frames", f"{getattr(image, 'n_frames', 1)} frames: the first is used"))
    return faults


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    return image.convert("RGB").convert("L") if image.mode in ("P", "PA", "CMYK") else image.convert("L")
