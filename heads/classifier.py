"""A classifier of whole images on any backbone: the mean of its coarsest map, and one linear layer."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from backbones.base import Backbone
from backbones.errors import UserError
from backbones.layouts import CLASSIFIER
from backbones.load_plan import BEYOND_MAPS, LoadPlan, plan_load
from backbones.load_report import LoadReport, shape


class Classifier(nn.Module):
    """Logits from a backbone's coarsest map: its mean over all pixels, dropout, and the linear layer `fc`."""

    def __init__(self, backbone: Backbone, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.map_name, spec = list(backbone.feature_specs.items())[-1]
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(spec.channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, num_classes), before the softmax."""
        means = self.backbone(images)[self.map_name].mean((2, 3))
        return self.fc(self.dropout(means))


def classifier(backbone: Backbone, num_classes: int, *, dropout: float = 0.0) -> Classifier:
    """Build a classifier on a backbone.

    Args:
        backbone: any; its last map is used.
        num_classes: number of classes. There is no background among them, as there is in detection.
        dropout: probability to drop a mean in training.

    Raises:
        UserError: a number out of range.
    """
    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}: a classifier needs at least 1.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout is {dropout}: give a probability from 0 up to, not including, 1.")
    return Classifier(backbone, num_classes, dropout=dropout)


def load_classifier_weights(model: Classifier, path: str | Path) -> LoadReport:
    """Load backbone and final layer from a file, and say what became of each tensor in it.

    The file may be of any layout that `load_backbone_weights` knows. The final layer is what that leaves over as a classifier's
    (`fc`, `linear`, `head.fc`, `classifier.1`, ...): a linear layer, or a 1x1 convolution, with a bias.

    Raises:
        UserError: as `load_backbone_weights`; also, the file has no final layer for the model's classes, or it has more than
            one layer there. Nothing is loaded then.
    """
    plan = plan_load(model.backbone, path)
    plan.check(allow_partial=False)
    final = _final_layer(model, plan)
    report = plan.carry_out()
    model.fc.load_state_dict(
        {what: plan.state_dict.tensors[key].flatten(1 if what == "weight" else 0) for what, key in final.items()}
    )
    ignored = {reason: keys for reason, keys in report.ignored.items() if reason != CLASSIFIER}
    return replace(
        report,
        used={f"backbone.{ours}": theirs for ours, theirs in report.used.items()}
        | {f"fc.{what}": key for what, key in final.items()},
        ignored=ignored,
        not_from_file={reason: [f"backbone.{key}" for key in keys] for reason, keys in report.not_from_file.items()},
    )


def _final_layer(model: Classifier, plan: LoadPlan) -> dict[str, str]:
    """The file's keys of the final layer's weight and bias."""
    source = plan.report.source
    keys = plan.report.ignored.get(CLASSIFIER, []) + plan.report.ignored.get(BEYOND_MAPS, [])
    if not keys:
        raise UserError(
            f"{source} has no final layer, only a backbone: load_backbone_weights(model.backbone, path) loads that alone."
        )
    found = {what: [key for key in keys if key.endswith((what, f"_{what[0]}"))] for what in ("weight", "bias")}
    if len(keys) != 2 or len(found["weight"]) != 1 or len(found["bias"]) != 1:
        raise UserError(f"{source} does not end in one linear layer with a bias; its classifier is {', '.join(keys)}.")
    final = {what: keys[0] for what, keys in found.items()}
    for what, key in final.items():
        given, own = plan.state_dict.tensors[key], model.fc.get_parameter(what)
        if given.numel() != own.numel() or given.shape[:1] != own.shape[:1]:
            raise UserError(
                f"{source} does not fit {type(model).__name__}: {key} is {shape(given)} in the file and fc.{what} is "
                f"{shape(own)} in the model. Give the model as many classes as the file has, or load the backbone alone."
            )
    return final
