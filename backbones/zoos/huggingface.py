"""transformers' backbones: `hf/<id>`, `hf/<folder>`, or `hf/<model type>` with its default configuration and random weights.

No code of a repository is run (trust_remote_code stays off). A plain vision transformer gives the last of its maps; where its
patches span 14 pixels the image is reduced to 14/16, as for timm's.
"""

import fnmatch
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from backbones.base import Backbone
from backbones.errors import UserError, did_you_mean
from backbones.load_plan import make_plan
from backbones.norms import check_conversion, convert_batch_norms
from backbones.weight_files import StateDict
from backbones.weights import WEIGHT_FILE_SUFFIXES, LoadReport, load_backbone_weights
from backbones.zoos.measured import MODEL_ERRORS, MeasuredBackbone, choose, measure, stages_by_map

try:
    from transformers import AutoBackbone, AutoConfig, PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING, MODEL_FOR_BACKBONE_MAPPING_NAMES
except ModuleNotFoundError as error:
    raise UserError("Backbones named hf/... need transformers: pip install transformers.") from error


def names(pattern: str = "*") -> list[str]:
    """The model types that have a backbone and match a shell-style pattern, sorted; ids and folders go besides these."""
    return sorted(fnmatch.filter(MODEL_FOR_BACKBONE_MAPPING_NAMES, pattern))


def check_name(name: str) -> None:
    """Check that a name is a model type, an id (owner/model) or a folder that is there; ids are not looked up.

    Raises:
        UserError: it is none of these; the message names the nearest model type.
    """
    if name in MODEL_FOR_BACKBONE_MAPPING_NAMES or Path(name).is_dir():
        return
    parts = name.split("/")
    if len(parts) != 2 or not all(parts) or parts[0].startswith((".", "~")):
        kind = "model type with a backbone" if len(parts) == 1 else "folder"
        hint = did_you_mean(name, names()) if len(parts) == 1 else ""
        raise UserError(f"transformers has no {kind} {name!r}.{hint} hf/ takes a model type, a folder, or an id OWNER/MODEL.")


def build(
    name: str,
    *,
    weights: str | None = None,
    in_channels: int = 3,
    norm: str = "bn",
    out_features: list[str] | None = None,
    **options: Any,
) -> Backbone:
    """A backbone of transformers with its maps by stride, c2..c5.

    Args:
        name: a model type, an id or a folder.
        weights: "pretrained" (of the id or folder), the path of a file in the model's own names, or nothing.
        in_channels: channels of the images; pretrained weights are adapted from 3.
        norm: bn leaves the model's own norms; frozen_bn and sync_bn turn batch norms into those.
        out_features: which maps; also c1, where there is one.
        options: of the model's configuration, such as depths.

    Raises:
        UserError: no such model, weights that cannot be had or do not fit, or maps that a detector cannot use.
    """
    check_name(name)
    title = f"hf/{name}"
    check_conversion(norm, title)
    config = read_config(name, options, in_channels)
    for_three = weights == "pretrained" and in_channels != 3
    whole = create(name, config, pretrained=weights == "pretrained" and not for_three)
    patch = getattr(config, "patch_size", 32)
    patch = patch if isinstance(patch, int) and patch > 0 else 32
    size = getattr(config, "image_size", None) or 224
    size = size if isinstance(size, int) else max(size)
    measurement = measure(whole, in_channels, (1, patch, 32, 64, size), name=title, own_size=size)
    chosen = choose(measurement, out_features, name=title)
    plain = len({found.stride for found in measurement.maps}) == 1
    stage_of = (
        plain_stages(whole)
        if plain
        else stages_by_map(whole, in_channels, measurement, lambda key: any(word in key for word in ("embed", "stem")))
    )
    body = _Chosen(whole, [found.index for found in chosen.values()])
    report = load(whole, weights, in_channels, title) if weights not in (None, "pretrained") else None
    if for_three:
        whole.in_channels = in_channels  # type: ignore[assignment]  # it says to what the stem is adapted
        pretrained = create(name, read_config(name, options, 3), pretrained=True)
        plan = make_plan(whole, [StateDict("", pretrained.state_dict(), ())], source=f"{title}'s own weights")
        plan.check(allow_partial=False)
        report = plan.carry_out()
    backbone = MeasuredBackbone(
        convert_batch_norms(body, norm),
        chosen,
        in_channels=in_channels,
        measurement=measurement,
        plain=plain,
        stage_of={f"model.{key}": stage for key, stage in stage_of.items()},
        name=title,
    )
    backbone.weights_report = report
    return backbone


class _Chosen(nn.Module):
    """Those of a model's maps that are wanted."""

    def __init__(self, model: nn.Module, indices: list[int]) -> None:
        super().__init__()
        self.model = model
        self.indices = indices

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.model(images).feature_maps
        return [maps[i] for i in self.indices]


def read_config(name: str, options: dict[str, Any], in_channels: int) -> PretrainedConfig:
    """The configuration of a model type, id or folder, with options of the user's, and all its stages asked for.

    Raises:
        UserError: it cannot be had, it is of no backbone, or it has no such option.
    """
    title = f"hf/{name}"
    try:
        if name in MODEL_FOR_BACKBONE_MAPPING_NAMES:
            config = AutoConfig.for_model(name, **options)
            known: set[str] = set(AutoConfig.for_model(name).to_dict())
        else:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
            known = set(config.to_dict())
    except (OSError, ValueError) as error:
        raise UserError(
            f"The configuration of {title} could not be had ({_line(error)}). Where there is no network, download the model's "
            "folder elsewhere and name that: hf/FOLDER; or give a model type, such as hf/swin."
        ) from error
    except MODEL_ERRORS as error:
        raise UserError(f"{title} cannot be configured with {options}: {_line(error)}.") from error
    for option in options:
        if option not in known:
            raise UserError(f"{title} has no option {option!r}.{did_you_mean(option, known)}")
    if config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES or not getattr(config, "stage_names", None):
        raise UserError(
            f"{title} is of the model type {config.model_type!r}, of which transformers gives no feature maps by itself. Those "
            "it does, list_backbones('hf/*') lists; timm's models go as timm/NAME."
        )
    if in_channels != 3:
        if not hasattr(config, "num_channels"):
            raise UserError(f"{title} takes images of 3 channels only: its configuration has no num_channels.")
        config.num_channels = in_channels
    for key, value in list(vars(config).items()):
        if isinstance(value, tuple):  # some models add lists to it, as it is when read from a file
            setattr(config, key, list(value))
    return config


def create(name: str, config: PretrainedConfig, *, pretrained: bool) -> nn.Module:
    """The model that gives the maps of all its stages, with its own weights or random ones.

    Raises:
        UserError: it lacks something to be installed, or its weights cannot be had.
    """
    stages = list(config.stage_names)
    problem: Exception | None = None
    for wanted in (stages, stages[1:]):  # some do not give their stem's
        try:
            config.out_features = wanted
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                if pretrained:
                    # Not AutoBackbone's own from_pretrained, which in transformers 5 takes no folder.
                    model, info = MODEL_FOR_BACKBONE_MAPPING[type(config)].from_pretrained(
                        name, config=config, output_loading_info=True
                    )
                    check_loaded(info, name)
                    return model
                return AutoBackbone.from_config(config)
        except UserError:
            raise
        except ImportError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UserError(f"hf/{name} cannot be built: {' '.join(lines[:2])[:300]}") from error
        except OSError as error:
            raise UserError(
                f"The weights of hf/{name} could not be had ({_line(error)}). A model type has none; without a network, "
                "download the model's folder elsewhere and name that: hf/FOLDER."
            ) from error
        except MODEL_ERRORS as error:
            problem = error
    assert problem is not None
    raise UserError(f"hf/{name} cannot be a backbone: {_line(problem)}.") from problem


def check_loaded(info: dict[str, Any], name: str) -> None:
    """Check that pretrained weights had all but what a backbone adds to a classifier: norms of its maps, mask tokens.

    Raises:
        UserError: they lack more; the message names it.
    """
    missing = sorted(str(key) for key in info["missing_keys"] if "norm" not in str(key) and "mask_token" not in str(key))
    if missing:
        named = ", ".join(missing[:3])
        raise UserError(f"The weights of hf/{name} do not fit its configuration: {len(missing)} tensors are missing: {named}.")


def load(model: Any, path: str | None, in_channels: int, title: str) -> LoadReport:
    """Load a file in the model's own names, or those of a larger model that it is a part of.

    Raises:
        UserError: it cannot be read, or does not fit.
    """
    assert path is not None
    if Path(path).suffix not in WEIGHT_FILE_SUFFIXES and "/" not in path and not Path(path).exists():
        raise UserError(f"{title} has no weights {path!r}. Give 'pretrained' for an id or folder, or the path of a file.")
    model.in_channels = in_channels
    return load_backbone_weights(model, path)


def plain_stages(model: Any) -> dict[str, int]:
    """The stages of a plain vision transformer: its embeddings, then its layers in four equal parts, with what follows."""
    depth = getattr(model.config, "num_hidden_layers", 0)
    stages: dict[str, int] = {}
    position = 0
    for name, _ in model.named_parameters():
        layer = re.search(r"[._]layers?[._](\d+)[._]", f".{name}")
        if layer and depth:
            position = 1 + 4 * min(int(layer[1]), depth - 1) // depth
        stages[name] = position if layer or "embed" in name or position == 0 else 4
        if "embed" in name and not layer:
            stages[name] = 0
    return stages


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200].rstrip(".") if str(error) else type(error).__name__
