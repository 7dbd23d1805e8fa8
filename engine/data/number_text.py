"""Many numbers from their text, without a Python object for each.

COCO's polygons are 38 million numbers of at most two decimals. Such are read eight characters at a time, as one integer each
("SIMD within a register": Lemire, Number Parsing at a Gigabyte per Second, 2021), by numpy over all of them at once.
"""

import msgspec
import numpy as np

_FLOATS = msgspec.json.Decoder(list[float])


def read_numbers(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers of JSON, as int64 hundredths if they are all that or else as float64 (N,), and the mark after each (N,).

    Args:
        text: numbers with a mark between two of them, `,`, `!` or `&`, and without white space. The last one's mark is `&`.

    Returns None where something is no number, where nothing is between two marks, or a number is so large that it may not be
    the float next to it.
    """
    if not text:
        return None
    found = _hundredths(b"&&&&&&&&" + text + b"&")
    if found is not None:
        return found
    try:
        values = np.array(_FLOATS.decode(b"[" + text.replace(b"&", b",").replace(b"!", b",") + b"]"), np.float64)
    except msgspec.DecodeError:
        return None
    if not (np.abs(values) < 2.0**53).all():
        return None
    characters = np.frombuffer(text + b"&", np.uint8)
    return values, characters[(characters <= ord(",")) & (characters != ord("+"))]


def _bytes_kept(first: int) -> int:
    """A mask of 8 bytes that keeps those from place `first` on: the later characters, as the first is the lowest byte."""
    return (1 << 64) - (1 << 8 * first)


_WORD = np.uint64
_KEEP_LAST = np.array([_bytes_kept(8 - length) for length in range(9)], _WORD)
# By the number of decimals, 0 to 2, what is after the decimal point and before it, and what makes hundredths of the number.
_AFTER = np.array([_bytes_kept(0), _bytes_kept(7), _bytes_kept(6)], _WORD)
_BEFORE = np.array([0, ~_bytes_kept(6) & _bytes_kept(0), ~_bytes_kept(5) & _bytes_kept(0)], _WORD)
_SHIFT = np.array([0, 8, 8], _WORD)
_SCALE = np.array([100, 10, 1], _WORD)
_POINT = ord(".") ^ ord("0")


def _hundredths(text: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Numbers between marks, as whole hundredths (N,) and the mark after each (N,).

    Args:
        text: eight marks, then numbers with a mark after each; a mark is any character up to the comma.

    Returns None if one is below zero, has an exponent, a third decimal or more than eight characters, or is none.
    """
    characters = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(characters <= ord(","))[7:]
    lengths = np.diff(ends) - 1
    ends = ends[1:]
    if not len(ends) or lengths.min() < 1 or lengths.max() > 8:
        return None
    # The eight characters before each mark as one integer, the last of them its highest byte.
    words = np.ndarray(len(text) - 7, "<u8", text, 0, (1,)).take(ends - 8)
    words ^= _WORD(0x3030303030303030)  # the digits become 0 to 9
    words &= _KEEP_LAST.take(lengths)
    by_byte = words.view(np.uint8).reshape(-1, 8)
    decimals = (by_byte[:, 6] == _POINT) + 2 * (by_byte[:, 5] == _POINT).astype(np.intp)
    if decimals.max() > 2:
        return None
    after = words & _AFTER.take(decimals)
    words &= _BEFORE.take(decimals)
    words <<= _SHIFT.take(decimals)
    words |= after
    np.add(words, _WORD(0x7676767676767676), out=after)
    after |= words
    if np.bitwise_or.reduce(after) & _WORD(0x8080808080808080):  # a byte above 9
        return None
    # Pairs of digits become one number each, then pairs of these, then the two that are left.
    for factor, shift, kept in ((10, 8, 0x00FF00FF00FF00FF), (100, 16, 0x0000FFFF0000FFFF), (10000, 32, 0xFFFFFFFF)):
        np.right_shift(words, _WORD(shift), out=after)
        words *= _WORD(factor)
        words += after
        words &= _WORD(kept)
    words *= _SCALE.take(decimals)
    return (words.view(np.int64), characters[ends]) if words.max() < 2**31 else None
