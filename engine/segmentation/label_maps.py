"""Label maps as files: grey or palette PNGs whose pixel values are classes."""

from pathlib import Path

import numpy as np
from PIL import Image

from backbones.errors import UserError

_ONE_NUMBER = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
_LOSSY = ("JPEG", "JPEG2000", "MPO", "WEBP")


def read_label_map(path: Path, *, image: Path) -> np.ndarray:
    """The pixel values (H, W) of a label map, uint8 or uint16; of a palette PNG the indices.

    Args:
        image: the image it belongs to, for messages.

    Raises:
        UserError: the file is missing, broken, in colour, or compressed with loss.
    """
    try:
        with Image.open(path) as file:
            kind, mode, values = file.format, file.mode, np.asarray(file)
            expansion = _grey_expansion(path) if (kind, mode) == ("PNG", "L") else 1
    except FileNotFoundError:
        raise UserError(f"There is no label map {path} for the image {image}.") from None
    # Pillow's errors for broken files, and for ones so large that they look like an attack.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The label map {path} cannot be read: {error}. Replace it, or leave out its image.") from None
    if kind in _LOSSY:
        raise UserError(f"The label map {path} is a {kind}, whose pixel values are not exact: save label maps as PNG.")
    if mode not in _ONE_NUMBER:
        raise UserError(
            f"The label map {path} is in colour ({mode}). It must be a grey or palette PNG with one number a pixel, its class: "
            "turn its colours into the numbers of the classes."
        )
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.uint8:
        return values // expansion
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"The label map {path} has values from {values.min()} to {values.max()}: classes are 0 to 65535.")
    return values.astype(np.uint16)


def _grey_expansion(path: Path) -> int:
    """What Pillow multiplies the values of a grey PNG of 2 or 4 bits with, so that they span 0 to 255."""
    with path.open("rb") as file:
        bits = file.read(25)[24]  # after the signature, the length and name of IHDR, width and height
    return int(255 // (2**bits - 1))
