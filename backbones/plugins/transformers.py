"""Our backbones in transformers: `DetrConfig(backbone_config=VertebraConfig(name="resnet50"))`.

Importing this module registers them with transformers' AutoConfig and AutoBackbone, under the model type "vertebra".
"""

from typing import Any

import torch
from torch import Tensor, nn

from backbones.errors import UserError, did_you_mean
from backbones.plugins.common import all_specs, build, missing_framework, outline

try:
    from transformers import AutoBackbone, AutoConfig, PretrainedConfig, PreTrainedModel, modeling_utils
    from transformers.modeling_outputs import BackboneOutput

    try:
        from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    except ImportError:  # transformers 4
        from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin
except ImportError as error:
    raise missing_framework("backbones.plugins.transformers", "'transformers>=4.50'", error) from error


class VertebraConfig(BackboneConfigMixin, PretrainedConfig):
    """What `VertebraBackbone` is built from.

    Args:
        name: as `build_backbone` takes it.
        weights: as `build_backbone` takes it. They are read when a model is built from this config, and not written to
            config.json: a saved model has weights of its own.
        pyramid: None, or a pyramid of `build_fpn_backbone`; the maps are then its levels.
        num_channels: channels of the images.
        norm: as `build_backbone` takes it.
        trainable_layers: as `build_backbone` takes it.
        options: other options of `build_backbone` or `build_fpn_backbone`.
        out_features: names of the maps to give, such as ["c3", "c4", "c5"]. Left out: all.
        out_indices: places of those maps among `stage_names`, instead of their names.
        more: what transformers' PretrainedConfig takes.

    Raises:
        UserError: an unknown name, option or map.
    """

    model_type = "vertebra"

    def __init__(
        self,
        *,
        name: str = "resnet50",
        weights: str | None = None,
        pyramid: str | None = None,
        num_channels: int = 3,
        norm: str | None = None,
        trainable_layers: int | None = None,
        options: dict[str, Any] | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **more: Any,
    ) -> None:
        _check_misspelt(more)
        if "in_channels" in (options or {}):
            raise UserError(
                "options names in_channels, which transformers knows as num_channels: give VertebraConfig(num_channels=...)."
            )
        self.name, self.weights, self.pyramid, self.num_channels = name, weights, pyramid, num_channels
        self.norm, self.trainable_layers, self.options = norm, trainable_layers, dict(options or {})
        self.stage_names: list[str] = more.pop("stage_names", None) or []
        self.hidden_sizes: list[int] = more.pop("hidden_sizes", None) or []
        if not self.stage_names:  # not read from a file
            specs = all_specs(**self.build_options())
            self.stage_names = list(specs)
            self.hidden_sizes = [spec.channels for spec in specs.values()]
            if out_features is None and out_indices is None:
                out_features = list(outline(**self.build_options()).feature_specs)
            if weights is not None:  # the weights are not saved, but what build_backbone makes of their being there is
                num_stages = len(outline(**self.build_options()).stages())
                self.norm = norm or "frozen_bn"
                self.trainable_layers = min(3, num_stages) if trainable_layers is None else trainable_layers
        super().__init__(**more)
        self._choose(out_features, out_indices)

    def build_options(self) -> dict[str, Any]:
        """What `build_backbone`, or with a pyramid `build_fpn_backbone`, is called with."""
        own = {"norm": self.norm, "trainable_layers": self.trainable_layers, "in_channels": self.num_channels}
        return {"name": self.name, "weights": self.weights, "pyramid": self.pyramid} | own | self.options

    def to_dict(self) -> dict[str, Any]:
        """As PretrainedConfig's, without `weights`."""
        return {key: value for key, value in super().to_dict().items() if key != "weights"}

    def _choose(self, names: list[str] | None, places: list[int] | tuple[int, ...] | None) -> None:
        for name in names or ():
            if name not in self.stage_names:
                raise UserError(f"out_features names {name!r}.{did_you_mean(name, self.stage_names)}")
        if names is not None:
            self.out_features = [name for name in self.stage_names if name in names]
        else:
            count = len(self.stage_names)
            for place in places or ():
                if not -count <= place < count:
                    raise UserError(
                        f"out_indices has {place}, but {self.name} has {count} maps: {', '.join(self.stage_names)}."
                    )
            self.out_indices = sorted(place % count for place in places or range(count))


class VertebraBackbone(BackboneMixin, PreTrainedModel):
    """A backbone with the interface of transformers' backbones: `channels`, `out_features`, `feature_maps`.

    Raises:
        UserError: as `build_backbone`.
    """

    config_class = VertebraConfig
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: VertebraConfig) -> None:
        super().__init__(config)
        if hasattr(self, "_init_backbone"):  # transformers 4
            self._init_backbone(config)
        self.num_features = config.hidden_sizes
        options = config.build_options()
        if config.pyramid is None:
            options["out_features"] = list(config.out_features)  # stages beyond are not built
        # What is to be read from a file, transformers 5 builds without memory, and 4 with torch.nn.init switched off.
        self._to_be_read = torch.empty(0).is_meta or not getattr(modeling_utils, "_init_weights", True)
        if self._to_be_read:
            options["weights"] = None
        self.backbone = build(**options)
        if not self._to_be_read:
            for module in self.backbone.modules():  # not to be initialised again
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.post_init()

    def train(self, mode: bool = True) -> "VertebraBackbone":
        """As nn.Module.train; the first time after reading a file, what is frozen is frozen again: reading sets it free."""
        if self._to_be_read and not any(parameter.is_meta for parameter in self.parameters()):
            self._to_be_read = False
            if self.config.trainable_layers is not None:
                self.backbone.freeze(self.config.trainable_layers)
        super().train(mode)
        return self

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> Any:
        """(B, C_in, H, W) -> BackboneOutput with `feature_maps`, those of `out_features`, finest first.

        Raises:
            UserError: `out_features` was set to a map that is not built.
        """
        maps = self.backbone(pixel_values)
        if absent := [name for name in self.out_features if name not in maps]:
            raise UserError(f"{absent[0]} was not built: name it in VertebraConfig(out_features=[...]).")
        feature_maps = tuple(maps[name] for name in self.out_features)
        hidden_states = tuple(maps.values()) if output_hidden_states or self.config.output_hidden_states else None
        output = BackboneOutput(feature_maps=feature_maps, hidden_states=hidden_states, attentions=None)
        return output if return_dict is not False else output.to_tuple()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Values for what a checkpoint left out; transformers leaves alone what it has read."""
        if callable(renew := getattr(module, "init_non_persistent_buffers", None)):  # of timm's models
            renew()
        elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif hasattr(module, "running_mean") or isinstance(module, nn.GroupNorm | nn.LayerNorm):
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            for name, tensor in own.items():
                (nn.init.ones_ if name in ("weight", "running_var") else nn.init.zeros_)(tensor)


def _check_misspelt(more: dict[str, Any]) -> None:
    """Point at an option that is misspelt or belongs into `options`: transformers would keep it and say nothing."""
    own = {"name", "weights", "pyramid", "num_channels", "norm", "trainable_layers", "options", "out_features", "out_indices"}
    theirs = {*dir(PretrainedConfig), *vars(PretrainedConfig()), "attn_implementation", "experts_implementation"}
    theirs |= {"stage_names", "hidden_sizes", "dtype", "torch_dtype"}
    for option in more:
        if option not in theirs and not option.startswith("_"):
            raise UserError(
                f"VertebraConfig has no {option!r}.{did_you_mean(option, own)} What a backbone or a pyramid itself offers goes "
                f"into options={{...}}."
            )


AutoConfig.register(VertebraConfig.model_type, VertebraConfig)
AutoBackbone.register(VertebraConfig, VertebraBackbone)
