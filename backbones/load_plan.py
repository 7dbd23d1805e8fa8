"""What a file's tensors will do in a model, decided before any is touched: what fits, what does not, what is left over."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from backbones.conversions import convert
from backbones.errors import UserError
from backbones.layouts import (
    BACKBONE_LAYOUTS,
    CAFFE2,
    DETECTOR,
    SAME,
    Layout,
    head_of,
    is_detector_part,
    part_outside,
    pyramid_layouts,
)
from backbones.load_report import LoadReport, misfit, shape, some
from backbones.weight_files import StateDict, find_state_dicts, read_content
from backbones.weight_matching import Match, best_match

BODY = "body."
PYRAMID = "fpn."
BEYOND_MAPS = "beyond the feature maps"
NOT_IN_MODEL = "not in the model"
COUNTERS = "num_batches_tracked"
# Fewer names in common than one in so many, and a file is of another architecture.
FEW = 10


@dataclass(frozen=True)
class LoadPlan:
    """A load that can be carried out, or the reasons why it is only a partial one."""

    model: nn.Module
    state_dict: StateDict
    report: LoadReport
    tensors: dict[str, Tensor]  # the model's key -> what it is to hold

    def check(self, *, allow_partial: bool) -> None:
        """Check that the load is whole, or that a partial one is allowed.

        Raises:
            UserError: it is partial; the message names the missing, left-over and misshapen keys.
        """
        own = self.model.state_dict()
        given = self.state_dict.tensors
        problems = misfit(
            self.report.missing,
            self.report.ignored.get(NOT_IN_MODEL, []),
            [
                f"{key if key == theirs else f'{key} ({theirs})'} is {shape(given[theirs])} in the file and "
                f"{shape(own[key])} in the model"
                for key, theirs in self.report.misshapen.items()
            ],
        )
        if problems and not allow_partial:
            read_as = [f"with the names of {self.report.layout}"] if self.report.layout != SAME.name else []
            read_as += [f"under the prefix {self.report.prefix!r}"] if self.report.prefix else []
            reading = f" (read {' '.join(read_as)})" if read_as else ""
            raise UserError(
                f"{self.report.source}{reading} does not fit {type(self.model).__name__}: {problems}. "
                "Check that the architecture and its options are those the weights were made for."
            )

    def carry_out(self) -> LoadReport:
        """Load the tensors, and say what became of the rest."""
        self.model.load_state_dict({**self.model.state_dict(), **self.tensors}, strict=True)
        return self.report


def plan_load(model: nn.Module, path: str | Path) -> LoadPlan:
    """Find a backbone in a weight file; nothing is loaded yet.

    Raises:
        UserError: as `read_content` and `make_plan`.
    """
    return make_plan(model, find_state_dicts(read_content(path), source=path), source=str(path))


def make_plan(model: nn.Module, state_dicts: Sequence[StateDict], *, source: str) -> LoadPlan:
    """Find a backbone in a file's dictionaries of tensors; nothing is loaded yet.

    Raises:
        UserError: the file is of another architecture, or of weights that the model would compute with otherwise.
    """
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    has_pyramid = all(isinstance(getattr(model, part, None), nn.Module) for part in ("body", "fpn"))
    in_pyramid = {key for key in own if has_pyramid and key.startswith(PYRAMID)}
    in_body = {key: value for key, value in own.items() if key not in in_pyramid}
    in_channels = getattr(model, "in_channels", 3)

    base = BODY if has_pyramid else ""
    body = _best_match_below(base, in_body, state_dicts, BACKBONE_LAYOUTS, in_channels=in_channels)
    if body is None or FEW * body.num_named < len(in_body):
        raise _another_architecture(model, in_body, state_dicts, source=source)
    given = body.state_dict.tensors
    pyramid = _find_pyramid({key: own[key] for key in own if key in in_pyramid}, body.state_dict)
    conversion = convert(model, body, in_channels=in_channels, source=source)
    found, misshapen = dict(body.found), dict(body.misshapen)
    tensors, notes = dict(conversion.tensors), list(conversion.notes)
    notes += [f"The weights under {place!r} fit as well, and were not used." for place in body.rivals]
    if pyramid is not None:
        found |= pyramid.found
        misshapen |= pyramid.misshapen
        tensors |= {key: given[theirs] for key, theirs in pyramid.found.items()}
        notes.append(f"pyramid: names of {pyramid.layout.name} under {pyramid.prefix!r}")

    ignored: dict[str, list[str]] = {}
    leftovers = _Leftovers(model, body, pyramid, base)
    named = {*found.values(), *misshapen.values()}
    for key in given:
        if key not in named:
            ignored.setdefault(leftovers.reason(key), []).append(key)
    not_from_file: dict[str, list[str]] = {}
    missing: list[str] = []
    for key in own:
        if key not in found and key not in misshapen:
            reason = _reason_to_lack(key, filled=conversion.filled, untouched=set() if pyramid else in_pyramid)
            (not_from_file.setdefault(reason, []) if reason else missing).append(key)
    report = LoadReport(
        source=source,
        container=body.state_dict.path,
        layout=body.layout.name,
        prefix=body.prefix,
        used=found,
        ignored=ignored,
        missing=missing,
        misshapen=misshapen,
        not_from_file=not_from_file,
        notes=notes,
        others=body.state_dict.others,
    )
    return LoadPlan(model, body.state_dict, report, tensors)


def _best_match_below(
    base: str,
    own: Mapping[str, Tensor],
    state_dicts: Sequence[StateDict],
    layouts: Sequence[Layout],
    *,
    in_channels: int = 3,
) -> Match | None:
    """`best_match` of a module's tensors by themselves, without the module's name in the model."""
    below = {key.removeprefix(base): value for key, value in own.items()}
    match = best_match(below, state_dicts, layouts, in_channels=in_channels)
    if match is None:
        return None
    return replace(
        match,
        target=base + match.target,
        found={base + key: theirs for key, theirs in match.found.items()},
        misshapen={base + key: theirs for key, theirs in match.misshapen.items()},
    )


def _find_pyramid(own: Mapping[str, Tensor], state_dict: StateDict) -> Match | None:
    """A pyramid by name, if the file has most of it: what does not fit then is an error, not another module."""
    levels = {level[1] for key in own if (level := re.match(r"fpn\.inner_blocks\.(\d+)\.", key))}
    match = _best_match_below(PYRAMID, own, [state_dict], pyramid_layouts(len(levels)))
    return match if match is not None and 2 * match.num_named >= len(own) else None


def _reason_to_lack(key: str, *, filled: Collection[str], untouched: Collection[str]) -> str | None:
    """Why a tensor of the model need not be in the file; None: it must."""
    if key in untouched:
        return "the pyramid, which was not touched: the file has none such"
    if key in filled:
        return "statistics of norms that have none: mean 0, variance 1 - eps"
    if key.endswith(COUNTERS):
        return "batch counters"
    return "offsets of deformable convolutions, zero at first" if ".offset_and_mask." in key else None


class _Leftovers:
    """Says why tensors of a file that the model has none for may be left out."""

    def __init__(self, model: nn.Module, body: Match, pyramid: Match | None, base: str) -> None:
        self.body, self.pyramid = body, pyramid
        module = model.get_submodule(body.target.rstrip("."))
        # An adapter may have put something without parameters in a part's place.
        self.children = {name for name, child in module.named_children() if child.state_dict()}
        self.is_adapter = body.target != base  # the backbone has another library's model within it
        self.has_unbuilt_stages = any(self._unbuilt_layers(key) for key in body.state_dict.tensors)

    def reason(self, key: str) -> str:
        """In words; NOT_IN_MODEL where there is none."""
        tensor = self.body.state_dict.tensors[key]
        kernel = max(tensor.shape[2:]) if tensor.ndim == 4 else 1
        prefix = self.body.prefix
        in_body = key.startswith(prefix)
        in_pyramid = self.pyramid is not None and self.pyramid.prefix != "" and key.startswith(self.pyramid.prefix)
        if key.endswith(COUNTERS) and (in_body or in_pyramid):
            return "batch counters"
        if not in_body:
            return "levels that this pyramid lacks" if in_pyramid else part_outside(key, kernel=kernel)
        rest = key.removeprefix(prefix)
        if (head := head_of(rest, kernel=kernel)) is not None:
            return head
        if self.body.layout is CAFFE2 and (reason := self._reason_in_caffe2(rest, tensor)):
            return reason
        tops = self._tops(key)
        if self._unbuilt_layers(key) or (self.has_unbuilt_stages and tops - self.children == {"norm"}):
            return "stages that are not built"
        if self.is_adapter and tops and not tops & self.children:
            return BEYOND_MAPS
        return NOT_IN_MODEL

    def _tops(self, key: str) -> set[str]:
        """The modules of the backbone that a key can belong to."""
        if not key.startswith(self.body.prefix):
            return set()
        return {name.split(".")[0] for name in self.body.layout.translate(key.removeprefix(self.body.prefix))}

    def _unbuilt_layers(self, key: str) -> bool:
        tops = self._tops(key)
        return bool(tops) and all(top.startswith("layer") and top not in self.children for top in tops)

    @staticmethod
    def _reason_in_caffe2(key: str, tensor: Tensor) -> str | None:
        if key.endswith("_momentum"):
            return "the solver's momentum"
        if is_detector_part(key):
            return DETECTOR
        return "biases of zero" if key.endswith("_b") and not tensor.any() else None


def _another_architecture(
    model: nn.Module, own: Mapping[str, Tensor], state_dicts: Sequence[StateDict], *, source: str
) -> UserError:
    given = max((state_dict.tensors for state_dict in state_dicts), key=len)
    return UserError(
        f"{source} does not fit {type(model).__name__}: it is of another architecture. In no layout known here does it have "
        f"the model's tensors, such as {some([*own], 3)}; its own are such as {some([*given], 3)}. "
        "Build the backbone that the file was made for, or give a file of this one."
    )
