"""Finds a model's tensors in a file, whatever they are called there and wherever they lie."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from backbones.layouts import Layout
from backbones.weight_files import StateDict

# Of two equal copies, one is meant to be used: MoCo's query encoder, a self-distillation's teacher, a weight average.
SECOND_CHOICE = re.compile(r"encoder_k|momentum|student|target")
FIRST_CHOICE = re.compile(r"(?<![a-z])ema(?![a-z])")
# Deeper than any prefix that is known of, and less than most keys.
DEEPEST_PREFIX = 6


@dataclass(frozen=True)
class Match:
    """A model's tensors in one dictionary of a file, read as one layout under one prefix."""

    state_dict: StateDict
    layout: Layout
    prefix: str  # before the file's keys
    target: str  # before the model's keys: an adapter keeps another library's model under a name of its own
    found: dict[str, str]  # the model's key -> the file's
    misshapen: dict[str, str] = field(default_factory=dict)  # as found, where the shapes differ
    rivals: tuple[str, ...] = ()  # where other tensors lie that fit as well

    @property
    def place(self) -> str:
        """Where in the file its tensors lie."""
        return f"{self.state_dict.path}/{self.prefix}" if self.state_dict.path else self.prefix

    @property
    def num_named(self) -> int:
        """How many of the model's tensors are in the file, whatever their shapes."""
        return len(self.found) + len(self.misshapen)

    @property
    def order(self) -> tuple[int, int, int, int, int]:
        """The better match has the larger: tensors that fit, tensors that have a name, then the copy that is meant."""
        choice = -1 if SECOND_CHOICE.search(self.place) else 1 if FIRST_CHOICE.search(self.place) else 0
        return len(self.found), len(self.misshapen), choice, -len(self.target), -len(self.prefix)


def best_match(
    own: Mapping[str, Tensor], state_dicts: Sequence[StateDict], layouts: Iterable[Layout], *, in_channels: int
) -> Match | None:
    """The reading of a file that fits most of a model's tensors by name and shape; None where no name fits.

    Args:
        own: the model's tensors by key.
        state_dicts: the dictionaries of tensors in the file.
        layouts: how the file may name them; of equally good ones the first.
        in_channels: of the model's images: a first convolution for 3 channels or 1 can be adapted to them.
    """
    best: Match | None = None
    seen: list[Match] = []
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    for layout in layouts:
        if best is not None and needed <= best.found.keys():
            break  # nothing can fit better
        for state_dict in state_dicts:
            for match in _matches(own, state_dict, layout, in_channels=in_channels):
                seen.append(match)
                if best is None or match.order > best.order:
                    best = match
    if best is None:
        return None
    rivals = {match.place for match in seen if len(match.found) == len(best.found) and not _share_tensors(match, best)}
    return replace(best, rivals=tuple(sorted(rivals)))


def _share_tensors(one: Match, other: Match) -> bool:
    return one.state_dict is other.state_dict and not set(one.found.values()).isdisjoint(other.found.values())


def _matches(own: Mapping[str, Tensor], state_dict: StateDict, layout: Layout, *, in_channels: int) -> Iterator[Match]:
    by_place: dict[tuple[str, str], dict[str, str]] = {}
    targets = list(_targets(own))
    for key in state_dict.tensors:
        for prefix, rest in _splits(key):
            for target, name in ((target, name) for target in targets for name in layout.translate(rest)):
                names = by_place.setdefault((prefix, target), {})
                if target + name in own and target + name not in names:
                    names[target + name] = key
                    break
    for (prefix, target), names in by_place.items():
        if not names:
            continue
        fits = {name: key for name, key in names.items() if _fits(own[name], state_dict.tensors[key], name, in_channels)}
        misshapen = {name: key for name, key in names.items() if name not in fits}
        yield Match(state_dict, layout, prefix, target, fits, misshapen)


def _splits(key: str) -> Iterator[tuple[str, str]]:
    parts = key.split(".")
    for i in range(min(len(parts), DEEPEST_PREFIX + 1)):
        yield "".join(f"{part}." for part in parts[:i]), ".".join(parts[i:])


def _targets(own: Mapping[str, Tensor]) -> Iterator[str]:
    """The dotted prefixes, the empty one first, under which most of a model's keys lie."""
    target = ""
    while True:
        yield target
        below: dict[str, int] = {}
        for key in own:
            if key.startswith(target) and "." in key[len(target) :]:
                name = key[len(target) :].split(".")[0]
                below[name] = below.get(name, 0) + 1
        largest = max(below, key=lambda name: below[name], default="")
        if 2 * below.get(largest, 0) <= len(own):
            return
        target += f"{largest}."


def _fits(own: Tensor, given: Tensor, name: str, in_channels: int) -> bool:
    if own.is_floating_point() and not given.is_floating_point():
        return False  # quantised
    return own.shape == given.shape or is_adaptable(own, given, in_channels) or is_unweighted_offset(own, given, name)


def is_adaptable(own: Tensor, given: Tensor, in_channels: int) -> bool:
    """Whether `given` is a first convolution for 3 channels or 1, and `own` the same for the model's other number of them."""
    if own.ndim != 4 or given.ndim != 4 or given.shape[1] == in_channels:
        return False
    channels_first = own.shape[1] == in_channels and given.shape[1] in (1, 3)
    return channels_first and own.shape[0] == given.shape[0] and own.shape[2:] == given.shape[2:]


def is_unweighted_offset(own: Tensor, given: Tensor, name: str) -> bool:
    """Whether `given` makes the offsets of a deformable convolution that weighs no samples, and `own` of one that does."""
    return ".offset_and_mask." in name and 2 * own.shape[0] == 3 * given.shape[0] and own.shape[1:] == given.shape[1:]
