"""What became of each tensor of a weight file, and of each of the model's."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class LoadReport:
    """What a load used, left aside and missed.

    Each tensor of the file's state dict is in exactly one of `used`, `ignored` and `misshapen`; each of the model's in exactly
    one of `used`, `misshapen`, `missing` and `not_from_file`.
    """

    source: str  # the file, or the name of published weights
    container: (
        str  # the dictionary in the file that the weights lie in, such as "model" or "teacher"; empty for the file itself
    )
    layout: str  # whose names the file has
    prefix: str  # what stands before them, such as "backbone.body."
    used: dict[str, str]  # the model's key -> the file's
    ignored: dict[str, list[str]] = field(default_factory=dict)  # reason -> the file's keys
    missing: list[str] = field(default_factory=list)  # the model's keys that the file lacks; only in a partial load
    misshapen: dict[str, str] = field(default_factory=dict)  # as used, but of other shapes; only in a partial load
    not_from_file: dict[str, list[str]] = field(default_factory=dict)  # reason -> the model's keys that need not be in the file
    notes: list[str] = field(default_factory=list)  # what was changed on the way, and what cannot be known from the file
    others: tuple[str, ...] = ()  # entries of the file that are no weights, or other ones: an epoch, an optimizer, a student

    @property
    def complete(self) -> bool:
        """Whether every tensor of the model that has to be in the file was, in the right shape."""
        return not self.missing and not self.misshapen

    def lines(self) -> list[str]:
        """A short summary for people, a line for each thing to know."""
        inside = f" in its entry {self.container!r}" if self.container else ""
        under = f" under {self.prefix!r}" if self.prefix else ""
        lines = [f"{self.source}: {len(self.used)} tensors used; names: {self.layout}{under}{inside}"]
        lines += [f"  ignored, {reason}: {some(keys)}" for reason, keys in self.ignored.items()]
        if self.missing:
            lines.append(f"  missing in the file: {some(self.missing)}")
        if self.misshapen:
            lines.append(f"  of another shape: {some([*self.misshapen])}")
        lines += [f"  not from the file, {reason}: {some(keys)}" for reason, keys in self.not_from_file.items()]
        if self.others:
            lines.append(f"  beside the weights: {some([*self.others])}")
        return lines + [f"  {note}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def some(items: list[str], limit: int = 6) -> str:
    """The first few of a list in words, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def misfit(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    """What does not fit between a file and a model, in one line; empty where all does."""
    problems = [f"missing {some(missing)}"] if missing else []
    problems += [f"not in the model {some(unexpected)}"] if unexpected else []
    problems += [some(misshapen)] if misshapen else []
    return "; ".join(problems)


def shape(tensor: Tensor) -> str:
    """Such as 64x3x7x7, with the type where it is not of floating-point numbers."""
    sizes = "x".join(str(size) for size in tensor.shape) or "a single number"
    return sizes if tensor.is_floating_point() else f"{sizes} ({str(tensor.dtype).removeprefix('torch.')})"
