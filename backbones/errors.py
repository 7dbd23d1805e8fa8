"""The error for what a user got wrong, and the nearest right name to suggest."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A path, key, annotation or weight file that the user can put right.

    The message says what is wrong, where, and what to do. The tools print it to stderr and exit with status 2; in Python it is
    an ordinary ValueError.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'resnet50'?"` for the nearest known name, or a list of what there is, or nothing."""
    known = sorted(set(known))
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    nearest = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    if nearest:
        return f" Did you mean {lowered[nearest[0]]!r}?"
    if 0 < len(known) <= 20:
        return f" Known: {', '.join(known)}."
    return ""
