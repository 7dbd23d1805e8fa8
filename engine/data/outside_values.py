"""What stands in files that others wrote: JSON that may be anything, numbers that may be none, names that may lead anywhere."""

import json
import re
from pathlib import Path
from typing import Any, TypeGuard

from backbones.errors import UserError

MOST = 3e38  # the largest number of a 32-bit float, nearly
# Empty, a folder, absolute on one system or the other, up and out of the folder, or cut short by a zero byte.
_BAD_NAME = re.compile(r"\A\Z|\A[\\/]|\A[A-Za-z]:|(?:\A|[\\/])\.\.(?:[\\/]|\Z)|(?:\A|[\\/])\.?\Z|\0")


def parse_json(text: bytes, path: Path | str) -> Any:
    """What a JSON file holds; numbers may be NaN or infinite.

    Args:
        path: the file, for messages.

    Raises:
        UserError: it is no JSON, or none that can be read; the message names line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}, column {error.colno}: this is no JSON ({error.msg}).") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is no JSON: it is not text.") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: its lists are nested too deep.") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise UserError(f"{path} cannot be read as JSON: it has a number of thousands of digits.") from None


def is_finite(value: Any) -> TypeGuard[float]:
    """Whether a value is a number that a 32-bit float can hold, neither NaN nor infinite."""
    return isinstance(value, int | float) and abs(value) <= MOST


def is_text(value: str) -> bool:
    """Whether a text can be written in UTF-8: JSON can also hold halves of characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def problem_of_name(name: str) -> str | None:
    """What keeps an image's file name from being one within the images folder; None where it is. The disk is not asked.

    A link that lies in the folder may point wherever its owner wants.
    """
    if not _BAD_NAME.search(name):
        return None
    if "\0" in name:
        return "has a zero byte in it"
    if not name or name[-1] in "\\/" or re.split(r"[\\/]", name)[-1] in (".", ".."):
        return "names no file"
    if re.match(r"[\\/]|[A-Za-z]:", name):
        return "is an absolute path"
    return "leads out of the images folder, or may: `..` is refused"


def are_names(names: list[str]) -> bool:
    """Whether `problem_of_name` has nothing to say of any."""
    return not any(map(_BAD_NAME.search, names))
