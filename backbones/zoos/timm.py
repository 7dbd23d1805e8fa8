"""timm's models as backbones: `timm/<name>`.

Models of a fixed image size are built with timm's own options for other sizes, where they have any. A plain vision transformer
(one stride) gives its last block's map, after the model's final norm. Where its patches span 14 pixels the image is reduced to
14/16 (bilinearly), so that a token spans 16 pixels of the image.
"""

import fnmatch
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from backbones.base import Backbone
from backbones.errors import UserError, did_you_mean
from backbones.norms import check_conversion
from backbones.weights import WEIGHT_FILE_SUFFIXES, read_state_dict
from backbones.zoos.measured import MODEL_ERRORS, MeasuredBackbone, Measurement, choose, measure, run, stages_by_map

try:
    import timm
    from timm.layers import convert_sync_batchnorm
    from timm.models._features import FeatureGetterNet
    from timm.utils.model import freeze_batch_norm_2d
except ModuleNotFoundError as error:
    raise UserError("Backbones named timm/... need timm: pip install timm.") from error

# Options that let a model of a fixed size take others, by the family that has them; the first that a model knows is used.
ANY_SIZE_OPTIONS: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


def names(pattern: str = "*") -> list[str]:
    """timm's names that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(timm.list_models(), pattern))


def check_name(name: str) -> None:
    """Check that timm has a model of that name.

    Raises:
        UserError: it has none, or the name ends in a pretrained tag; the message names the nearest.
    """
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise UserError(f"timm has no model {base!r}.{did_you_mean(base, timm.list_models())}")
    if tag:
        raise UserError(f"timm/{name} names weights, too. Give them as weights: name timm/{base}, weights {tag}.")


def check_tag(name: str, tag: str) -> None:
    """Check that timm publishes weights of that tag.

    Raises:
        UserError: it does not.
    """
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    if tag not in tags:
        hint = did_you_mean(tag, [*tags, "pretrained"])
        raise UserError(f"timm publishes no weights {tag!r} for {name}.{hint} Or give the path of a file.")


def build(
    name: str,
    *,
    weights: str | None = None,
    in_channels: int = 3,
    norm: str = "bn",
    out_features: list[str] | None = None,
    **options: Any,
) -> Backbone:
    """A timm model with its maps by stride, c2..c5, or the one map of a plain vision transformer.

    Args:
        name: as timm.list_models() has it.
        weights: "pretrained", a pretrained tag, the path of a file in timm's names, or nothing.
        in_channels: channels of the images; timm adapts the weights.
        norm: bn leaves the model's own norms; frozen_bn and sync_bn turn batch norms into those.
        out_features: which maps; also c1, where there is one.
        options: of timm.create_model, such as drop_path_rate.

    Raises:
        UserError: no such model, weights that cannot be had or do not fit, or maps that a detector cannot use.
    """
    check_name(name)
    check_conversion(norm, f"timm/{name}")
    source = weight_source(name, weights)
    title = f"timm/{name}"
    with torch.random.fork_rng(devices=[]):
        settings, probe, measurement = find_settings(name, in_channels, options)
    chosen = choose(measurement, out_features, name=title)
    plain = len({found.stride for found in measurement.maps}) == 1
    stage_of = {} if plain else stages_by_map(probe, in_channels, measurement, stem_test(probe))
    info = probe.feature_info
    indices = [info.out_indices[found.index] % len(info) for found in chosen.values()]
    as_is = indices == [index % len(info) for index in info.out_indices]
    if as_is and not plain and source == {} and torch.get_default_device().type == "meta":
        body: nn.Module = probe
    else:
        body = create(name, in_channels, settings | options, source, indices=indices, plain=plain)
    if norm == "frozen_bn":
        body = freeze_batch_norm_2d(body)
    elif norm == "sync_bn":
        body = convert_sync_batchnorm(body)
    if plain:
        stage_of = plain_stages(body)
    places = chosen
    if plain and isinstance(body, FeatureGetterNet):
        # The final norm may project to other channels.
        output = run(body, in_channels, measurement.size())[0]
        places = {
            level: replace(found, channels=output.shape[3 if found.channels_last else 1]) for level, found in chosen.items()
        }
    return MeasuredBackbone(
        body,
        places,
        in_channels=in_channels,
        measurement=measurement,
        plain=plain,
        stage_of=stage_of,
        name=title,
    )


def find_settings(
    name: str, in_channels: int, options: dict[str, Any], *, device: str = "meta"
) -> tuple[dict[str, Any], Any, Measurement]:
    """The options with which a model takes images of any size, the model on a device, and what was measured of it.

    On the meta device that takes neither memory nor arithmetic; models that look at values are measured on the default one.

    Raises:
        UserError: it gives no maps, or takes no image but of one size; the message says what was measured.
    """
    fixed = bool((timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).fixed_input_size)
    for settings in ANY_SIZE_OPTIONS if fixed else ({},):
        try:
            with torch.device(device):
                probe = create(name, in_channels, settings | options, {})
        except TypeError as error:
            if not settings:
                raise UserError(f"timm/{name} cannot be built with {options}: {error}") from error
            continue
        side = options.get("img_size", (probe.pretrained_cfg.get("input_size") or (3, 224, 224))[-1])
        side = side if isinstance(side, int) else max(side)
        patch = int(max(probe.feature_info.reduction()))
        own_size = side if fixed and not settings else None
        try:
            return (
                settings,
                probe,
                measure(probe, in_channels, (1, patch, 32, 64, side), name=f"timm/{name}", own_size=own_size),
            )
        except UserError as error:
            if device == "meta" and "meta tensor" in str(error):
                if torch.get_default_device().type == "meta":
                    raise UserError(
                        f"timm/{name} cannot be built on the meta device: it looks at the values of tensors."
                    ) from error
                return find_settings(name, in_channels, options, device=str(torch.get_default_device()))
            if not settings:
                raise
    raise AssertionError("the last settings, none, either give a measurement or an error")


def create(
    name: str,
    in_channels: int,
    options: dict[str, Any],
    source: dict[str, Any],
    *,
    indices: list[int] | None = None,
    plain: bool = False,
) -> Any:
    """A timm model that gives its maps as a list, with the weights of `source` as timm.create_model takes them.

    Raises:
        TypeError: an option that the model does not take.
        UserError: it gives no maps, or the weights cannot be had or do not fit.
    """
    chosen = {"out_indices": tuple(indices)} if indices is not None else {}
    with _loading(name, source) as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if plain and indices is not None:
                whole = timm.create_model(name, in_chans=in_channels, num_classes=0, **source, **options)
                if hasattr(whole, "forward_intermediates"):
                    body: Any = FeatureGetterNet(whole, out_indices=indices, norm=True)
                    log.check(body)
                    return body
            body = timm.create_model(name, features_only=True, in_chans=in_channels, **chosen, **source, **options)
        except TypeError:
            raise
        except MODEL_ERRORS as error:
            if source:
                raise
            line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"timm/{name} gives no feature maps ({line}), so it cannot be a backbone.") from error
        log.check(body)
        return body


def weight_source(name: str, weights: str | None) -> dict[str, Any]:
    """What timm.create_model takes for `weights`.

    Raises:
        UserError: no such tag, or a file that cannot be read.
    """
    if weights is None:
        return {}
    if Path(weights).suffix in WEIGHT_FILE_SUFFIXES or "/" in weights or Path(weights).exists():
        return {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": dict(read_state_dict(weights))}}
    if weights == "pretrained":
        return {"pretrained": True}
    check_tag(name, weights)
    return {"pretrained": True, "pretrained_cfg": weights}


class _Log(logging.Handler):
    """What timm logs of missing and left-over keys: it loads backbones without strictness."""

    def __init__(self, name: str) -> None:
        super().__init__(logging.INFO)
        self.name_of_model = name
        self.keys: dict[str, list[str]] = {"Missing": [], "Unexpected": []}

    def emit(self, record: logging.LogRecord) -> None:
        found = re.match(r"(Missing|Unexpected) keys \((.*?)\)", record.getMessage())
        if found:
            self.keys[found[1]] += found[2].split(", ")

    def check(self, body: nn.Module) -> None:
        """Check that no tensor of the backbone was missing; timm joins names of nested modules by _ in some."""
        own = {key.removeprefix("model.").replace(".", "_") for key in body.state_dict()}
        missing = [key for key in self.keys["Missing"] if key.replace(".", "_") in own]
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing:
            left = self.keys["Unexpected"]
            also = f"; {len(left)} are left over: {', '.join(left[:3])}" if left else ""
            raise UserError(
                f"The weights do not fit timm/{self.name_of_model}: {len(missing)} tensors are missing: "
                f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}{also}. Give timm's weights of this model."
            )


@contextmanager
def _loading(name: str, source: dict[str, Any]) -> Iterator[_Log]:
    """Listen to timm's loader, and say in one sentence what failed in it."""
    log, loader = _Log(name), logging.getLogger("timm.models._builder")
    level = loader.level
    if source:
        loader.addHandler(log)
        loader.setLevel(logging.INFO)
    try:
        yield log
    except UserError:
        raise
    except Exception as error:
        if not source or isinstance(error, TypeError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        if source.get("pretrained_cfg_overlay"):
            raise UserError(f"The weights do not fit timm/{name}: {' '.join(lines[:4])[:600]}") from error
        reason = lines[0].partition(". ")[0][:200]
        raise UserError(
            f"The weights of timm/{name} could not be downloaded ({reason}). Where there is no network, fetch them "
            f"elsewhere and pass the file: model.backbone.weights=PATH."
        ) from error
    finally:
        if source:
            loader.removeHandler(log)
            loader.setLevel(level)


def stem_test(probe: Any) -> Any:
    """Whether a parameter, by name, comes before the first block that timm names in its feature_info."""
    first = _flat(str(probe.feature_info.info[0]["module"]))
    return lambda name: not _flat(name.removeprefix("model.")).startswith(f"{first}_")


def plain_stages(body: Any) -> dict[str, int]:
    """The stages of a plain vision transformer: what precedes its blocks, then its blocks in four equal parts.

    What follows the blocks, such as the final norm, belongs to the last.
    """
    info = body.feature_info.info
    blocks = [f"{_flat(str(entry['module']))}_" for entry in info]
    stages: dict[str, int] = {}
    position = 0
    for name, _ in body.named_parameters():
        flat = _flat(name.removeprefix("model."))
        block = next((i for i, prefix in enumerate(blocks) if flat.startswith(prefix)), None)
        if block is not None:
            position = 1 + 4 * block // len(blocks)
        is_direct = "." not in name.removeprefix("model.")
        stages[name] = 0 if is_direct else position if block is not None or position == 0 else 4
    return stages


def _flat(name: str) -> str:
    return name.replace(".", "_")
