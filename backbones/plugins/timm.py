"""Our backbones as timm models: `timm.create_model("vertebra_resnet50", num_classes=10)`, or with `features_only=True`.

Importing this module registers our own backbones; `register_timm_model` adds any other.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.errors import UserError
from backbones.plugins.common import all_specs, build, missing_framework, pick
from backbones.registry import list_backbones
from backbones.weights import load_backbone_weights, read_state_dict

try:
    from timm.layers import create_classifier
    from timm.models import build_model_with_cfg, is_model, register_model
except ImportError as error:
    raise missing_framework("backbones.plugins.timm", "timm", error) from error

__all__ = ["VertebraModel", "register_timm_model"]  # timm adds the models' names

CLASSIFIER_OPTIONS = {"num_classes", "in_chans", "global_pool", "drop_rate"}


class VertebraModel(nn.Module):
    """A backbone with a linear classifier on its coarsest map, and the methods timm's models have.

    Args:
        name: as `build_backbone` takes it.
        num_classes: 0 for no classifier.
        in_chans: channels of the images.
        global_pool: a pooling of timm's, such as avg, or "" for none.
        drop_rate: probability of dropout before the classifier.
        options: of `build_backbone`, or with `pyramid` of `build_fpn_backbone`.

    Raises:
        UserError: as those two.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options: dict[str, Any] = dict(options, name=name, in_channels=in_chans)
        specs = all_specs(**self.options)
        self.map_names = list(specs)
        self.feature_info = [
            {"num_chs": spec.channels, "reduction": spec.stride, "module": map_name} for map_name, spec in specs.items()
        ]
        self.backbone = self._build(self.map_names)
        self.in_chans = in_chans
        self.drop_rate, self.pool_type = drop_rate, global_pool
        self.num_features = specs[self.map_names[-1]].channels
        self.reset_classifier(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> class scores (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> the coarsest map (B, num_features, H / stride, W / stride)."""
        return self.backbone(x)[self.map_names[-1]]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The coarsest map -> class scores (B, num_classes), or with `pre_logits` what the classifier is given."""
        x = F.dropout(self.global_pool(x), p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def get_classifier(self) -> nn.Module:
        """The linear layer that gives the class scores."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or with 0 classes none; the pooling stays unless one is given."""
        self.num_classes = num_classes
        self.pool_type = self.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=self.pool_type)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(B, C_in, H, W) -> the maps at `indices` (the last ones, if it is a number), unless told with the coarsest before.

        `norm` and `stop_early` are timm's and change nothing here.

        Raises:
            UserError: a place where there is no map, or a format other than NCHW.
        """
        if output_fmt != "NCHW":
            raise UserError(f"output_fmt is {output_fmt!r}: maps are NCHW.")
        maps = self.backbone(x)
        intermediates = [maps[name] for name in self._names(indices)]
        return intermediates if intermediates_only else (maps[self.map_names[-1]], intermediates)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Leave out what the maps at `indices` do not need, so that every parameter left has a gradient; gives their places.

        Raises:
            UserError: a place where there is no map.
        """
        names = self._names(indices)
        if names != self.map_names and self.options.get("pyramid") is None:
            smaller = self._build(names).train(self.training)
            whole = self.backbone.state_dict()
            smaller.load_state_dict({key: whole[key] for key in smaller.state_dict()})
            self.backbone = smaller
        if prune_head:
            self.reset_classifier(0, "")
        return [self.map_names.index(name) for name in names]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep the blocks' inputs alone for the backward pass, where the backbone can.

        Raises:
            UserError: it cannot.
        """
        if hasattr(self.backbone, "checkpoint_blocks"):
            self.backbone.checkpoint_blocks = enable
        elif enable:
            raise UserError(f"{type(self.backbone).__name__} has no activation checkpointing.")

    def load_pretrained(self, checkpoint_path: str) -> None:
        """Load a file of weights, and of its classifier `fc` if that has as many classes; what timm calls with `file`.

        Raises:
            UserError: as `load_backbone_weights`.
        """
        load_backbone_weights(self.backbone, checkpoint_path)
        given = read_state_dict(checkpoint_path)
        own = {f"fc.{key}": value for key, value in self.fc.state_dict().items()}
        if own and all(key in given and given[key].shape == value.shape for key, value in own.items()):
            self.fc.load_state_dict({key.removeprefix("fc."): given[key] for key in own})

    def _build(self, names: list[str]) -> Any:
        chosen = {"out_features": names} if self.options.get("pyramid") is None else {}
        return build(**self.options | chosen)

    def _names(self, indices: int | Sequence[int] | None) -> list[str]:
        if indices is None:
            return self.map_names
        places = range(len(self.map_names) - indices, len(self.map_names)) if isinstance(indices, int) else indices
        return pick(self.map_names, list(places))


def register_timm_model(name: str, *, timm_name: str | None = None, **defaults: Any) -> str:
    """Enter a backbone into timm's registry; gives the name `timm.create_model` takes.

    Args:
        name: as `build_backbone` takes it.
        timm_name: name in timm. Left out: vertebra_ and the name, with _ for what is no letter or digit.
        defaults: of VertebraModel, such as `pyramid` or `norm`; `timm.create_model` takes the same by keyword, too.

    Raises:
        UserError: no such backbone or option, or a name that timm has already.
    """
    timm_name = timm_name or f"vertebra_{re.sub('[^A-Za-z0-9]', '_', name)}"
    if is_model(timm_name):
        raise UserError(f"timm has a model {timm_name!r} already. Give timm_name=, another name.")
    all_specs(name, **{key: value for key, value in defaults.items() if key not in CLASSIFIER_OPTIONS})
    _register(timm_name, {"name": name} | defaults)
    return timm_name


def _register(timm_name: str, defaults: dict[str, Any]) -> None:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        cfg, overlay = options.pop("pretrained_cfg", None), options.pop("pretrained_cfg_overlay", None)
        cfg = (cfg if isinstance(cfg, dict) else {}) | (overlay or {})
        if pretrained and not cfg.get("file"):
            raise UserError(
                f"{timm_name} has no published weights in timm: give a file, "
                "timm.create_model(..., pretrained=True, pretrained_cfg_overlay=dict(file=PATH)), or leave out pretrained."
            )
        return build_model_with_cfg(
            VertebraModel,
            timm_name,
            pretrained,
            pretrained_cfg={"classifier": "fc"} | cfg | {"custom_load": True},
            feature_cfg={"out_indices": None, "feature_cls": "getter"},
            **defaults | options,
        )

    entry.__name__ = entry.__qualname__ = timm_name
    register_model(entry)


for _name in list_backbones():
    if "/" not in _name:
        _register(f"vertebra_{_name}", {"name": _name})
