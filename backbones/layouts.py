"""The names that other libraries give a ResNet's and a feature pyramid's parameters, and ours for them.

A layout translates a key, without the prefix under which the backbone lies in a file, to the names that the tensor may have in
our model, likeliest first. Which layout a file has is for weight_matching.py to find out.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """How one library names parameters."""

    name: str
    translate: Callable[[str], list[str]]  # a key of the file -> names it may have in the model; empty: of no meaning here


def renaming(name: str, rules: Iterable[tuple[str, list[str]]], *, others_stay: bool = False) -> Layout:
    """A layout of regular expressions for whole keys, each with the names it stands for; the first that matches counts."""
    compiled = [(re.compile(pattern), names) for pattern, names in rules]

    def translate(key: str) -> list[str]:
        for pattern, names in compiled:
            if match := pattern.fullmatch(key):
                return [match.expand(name) for name in names]
        return [key] if others_stay else []

    return Layout(name, translate)


# torchvision's, the CIFAR files', timm's ResNet with its deep stems, averaged shortcuts and squeeze-excitation, and all models
# that keep the names of the library they come from.
SAME = Layout("the model's own (torchvision, timm)", lambda key: [key])


def _timm_feature_list(key: str) -> list[str]:
    """timm's `features_only` takes some of the outermost containers apart: stages.0 becomes stages_0, stem.conv1 stem_conv1."""
    return [key.replace(".", "_", 1), key]


TIMM_FEATURES = Layout("timm", _timm_feature_list)

TIMM_RESNETV2 = renaming(
    "timm resnetv2",
    [
        (r"stem\.conv\.(.+)", [r"conv1.\1"]),
        (r"stem\.conv1\.(.+)", [r"conv1.0.\1"]),
        (r"stem\.norm1\.(.+)", [r"conv1.1.\1"]),
        (r"stem\.conv2\.(.+)", [r"conv1.3.\1"]),
        (r"stem\.norm2\.(.+)", [r"conv1.4.\1"]),
        (r"stem\.conv3\.(.+)", [r"conv1.6.\1"]),
        *(
            rule
            for i in range(4)
            for rule in [
                (rf"stages\.{i}\.blocks\.(\d+)\.norm(\d)\.(.+)", [rf"layer{i + 1}.\1.bn\2.\3"]),
                (rf"stages\.{i}\.blocks\.(\d+)\.conv(\d)\.(.+)", [rf"layer{i + 1}.\1.conv\2.\3"]),
                # The second where the shortcut starts with average pooling.
                (
                    rf"stages\.{i}\.blocks\.(\d+)\.downsample\.conv\.(.+)",
                    [rf"layer{i + 1}.\1.downsample.0.\2", rf"layer{i + 1}.\1.downsample.1.\2"],
                ),
            ]
        ),
        (r"norm\.(.+)", [r"norm.\1"]),
    ],
)

DETECTRON2 = renaming(
    "detectron2",
    [
        (r"stem\.conv1\.norm\.(.+)", [r"bn1.\1"]),
        (r"stem\.conv1\.(weight)", [r"conv1.\1"]),
        *(
            rule
            for i in range(1, 5)
            for rule in [
                (rf"res{i + 1}\.(\d+)\.conv(\d)\.norm\.(.+)", [rf"layer{i}.\1.bn\2.\3"]),
                (rf"res{i + 1}\.(\d+)\.conv(\d)\.(weight)", [rf"layer{i}.\1.conv\2.\3"]),
                (rf"res{i + 1}\.(\d+)\.conv2_offset\.(.+)", [rf"layer{i}.\1.conv2.offset_and_mask.\2"]),
                (rf"res{i + 1}\.(\d+)\.shortcut\.norm\.(.+)", [rf"layer{i}.\1.downsample.1.\2"]),
                (rf"res{i + 1}\.(\d+)\.shortcut\.(weight)", [rf"layer{i}.\1.downsample.0.\2"]),
            ]
        ),
    ],
)


# Caffe2's names for a norm's tensors: s and b alone, where the statistics are merged into them.
CAFFE2_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var", "gamma": "weight", "beta": "bias"}
CAFFE2_CONVOLUTIONS = {"branch1": "downsample.0", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
CAFFE2_NORMS = {"branch1": "downsample.1", "branch2a": "bn1", "branch2b": "bn2", "branch2c": "bn3"}


def _caffe2(key: str) -> list[str]:
    if key == "conv1_w":
        return ["conv1.weight"]
    if match := re.fullmatch(r"res_conv1_bn_(\w+)", key):
        return [f"bn1.{CAFFE2_NORM[match[1]]}"] if match[1] in CAFFE2_NORM else []
    if match := re.fullmatch(r"res([2-5])_(\d+)_(branch1|branch2[abc])_(bn_)?(\w+)", key):
        stage, block, branch, norm, what = match.groups()
        stem = f"layer{int(stage) - 1}.{block}."
        if norm and what in CAFFE2_NORM:
            return [f"{stem}{CAFFE2_NORMS[branch]}.{CAFFE2_NORM[what]}"]
        if not norm and what == "w":
            return [f"{stem}{CAFFE2_CONVOLUTIONS[branch]}.weight"]
    return []


CAFFE2 = Layout("Caffe2", _caffe2)

# As torchvision's, but for the deep stem, the norms that are named by their kind, the squeeze-excitation and the offsets.
OPENMMLAB = renaming(
    "MMDetection",
    [
        (r"stem\.7\.(.+)", [r"bn1.\1"]),
        (r"stem\.(\d)\.(.+)", [r"conv1.\1.\2"]),
        (r"gn1\.(.+)", [r"bn1.\1"]),
        (r"(layer\d\.\d+)\.gn(\d)\.(.+)", [r"\1.bn\2.\3"]),
        (r"(layer\d\.\d+)\.se_layer\.conv(\d)\.conv\.(.+)", [r"\1.se.fc\2.\3"]),
        (r"(layer\d\.\d+\.conv2)\.conv_offset\.(.+)", [r"\1.offset_and_mask.\2"]),
    ],
    others_stay=True,
)


def _hugging_face_rules() -> Iterable[tuple[str, list[str]]]:
    yield r"embedder\.embedder\.convolution\.(.+)", [r"conv1.\1"]
    yield r"embedder\.embedder\.normalization\.(.+)", [r"bn1.\1"]
    for i in range(4):
        block, ours = rf"encoder\.stages\.{i}\.layers\.(\d+)", rf"layer{i + 1}.\1"
        yield block + r"\.shortcut\.convolution\.(.+)", [ours + r".downsample.0.\2"]
        yield block + r"\.shortcut\.normalization\.(.+)", [ours + r".downsample.1.\2"]
        for j in range(3):
            yield block + rf"\.layer\.{j}\.convolution\.(.+)", [ours + rf".conv{j + 1}.\2"]
            yield block + rf"\.layer\.{j}\.normalization\.(.+)", [ours + rf".bn{j + 1}.\2"]


HUGGING_FACE = renaming("Hugging Face", _hugging_face_rules())

BACKBONE_LAYOUTS = [SAME, TIMM_FEATURES, TIMM_RESNETV2, DETECTRON2, CAFFE2, OPENMMLAB, HUGGING_FACE]


def pyramid_layouts(num_levels: int) -> list[Layout]:
    """The layouts of a feature pyramid on `num_levels` maps of a backbone, the last of them C5."""
    first = 6 - num_levels
    detectron2 = [
        rule
        for i in range(num_levels)
        for ours, theirs in (("inner_blocks", "lateral"), ("layer_blocks", "output"))
        for rule in [
            (rf"fpn_{theirs}{first + i}\.(weight|bias)", [rf"{ours}.{i}.0.\1"]),
            (rf"fpn_{theirs}{first + i}\.norm\.(.+)", [rf"{ours}.{i}.1.\1"]),
        ]
    ]
    # MMDetection's convolutions beyond those of the levels are its P6 and P7. They lack the ReLU in between, and are not ours.
    openmmlab = [
        rule
        for i in range(num_levels)
        for ours, theirs in (("inner_blocks", "lateral_convs"), ("layer_blocks", "fpn_convs"))
        for rule in [
            (rf"{theirs}\.{i}\.conv\.(weight|bias)", [rf"{ours}.{i}.0.\1"]),
            (rf"{theirs}\.{i}\.(?:bn|gn)\.(.+)", [rf"{ours}.{i}.1.\1"]),
        ]
    ]
    return [
        SAME,
        # torchvision's before its version 0.13.
        renaming("torchvision", [(r"(inner_blocks|layer_blocks)\.(\d+)\.(weight|bias)", [r"\1.\2.0.\3"])], others_stay=True),
        renaming("detectron2", [*detectron2, (r"top_block\.(p\d)\.(.+)", [r"extra_blocks.\1.\2"])]),
        renaming("MMDetection", openmmlab),
    ]


# ---------------------------------------------------------------------------------------------------------------------------
# What a file has beside the backbone.

CLASSIFIER = "classifier"
PROJECTION = "projection head"
DETECTOR = "other parts of a detector"
_CLASSIFIER = (
    r"(fc|linear|last_linear|classifier(\.\d+)?|logits|fc1000|pred|linear_head|head|head\.fc|heads\.head|stem\.fc|cls_head\.fc)"
    r"[._](weight|bias|w|b)"
)
_PROJECTION = (
    r"(fc\.\d+|head\.(mlp|last_layer|\d+)|projection_head|projection|projector|prototypes|predictor|dino_head|ibot_head)\b.*"
)
_DETECTOR = (
    r"(rpn\w*|roi_\w+|\w*bbox\w*|mask_head|box_head|proposal_generator|fpn\w*|retnet\w*|anchor\w*|pixel_mean|pixel_std"
    r"|cls_score\w*|fc[67]\w*|kps\w*|keypoint\w*|mask_\w+|conv5_mask\w*|conv_fcn\w*|_\[mask\]_\w+"
    r"|transformer|query_embed|class_embed|input_proj)\b.*"
)
_REST_OF_DETECTOR = r"(neck|head|heads|sem_seg_head|decode_head|auxiliary_head)\..*"
_OTHER_ENCODER = r"\w*(encoder_[kq]|momentum|student|teacher|target|online|queue)\w*\b.*"


def head_of(key: str, *, kernel: int) -> str | None:
    """Whether a key, without the backbone's prefix, is of a classifier or a projection head, whose kernels are never large."""
    if kernel > 1:
        return None
    if re.fullmatch(_CLASSIFIER, key):
        return CLASSIFIER
    return PROJECTION if re.fullmatch(_PROJECTION, key) else None


def part_outside(key: str, *, kernel: int) -> str:
    """What a key outside the backbone's prefix belongs to, in words."""

    def is_part(pattern: str) -> bool:
        return re.fullmatch(rf"(\w+\.)*?{pattern}", key) is not None

    if is_part(_OTHER_ENCODER):
        return "another encoder"
    if is_part(_DETECTOR):
        return DETECTOR
    if kernel == 1 and is_part(_CLASSIFIER):
        return CLASSIFIER
    if kernel == 1 and is_part(_PROJECTION):
        return PROJECTION
    return DETECTOR if is_part(_REST_OF_DETECTOR) else "outside the backbone"


def is_detector_part(key: str) -> bool:
    """Whether a key without a prefix, as Caffe2's are, is of a detector's other parts."""
    return re.fullmatch(_DETECTOR, key) is not None
