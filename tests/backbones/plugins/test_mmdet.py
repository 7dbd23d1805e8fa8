"""Our backbones inside MMDetection's own RetinaNet and Faster R-CNN, whose code is unchanged.

Of mmcv, the Python part is its own; where its compiled part is missing, as in mmcv-lite, the one function that these detectors
call in it, non-maximum suppression, is torchvision's: see the fixture `mmdet`.
"""

import importlib

import pytest
import torch
import torchvision

from backbones import UserError, build_backbone, build_fpn_backbone

# The warnings are those of mmdet, mmengine and mmcv about their own code and about newer versions of torch.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning", "ignore::ImportWarning"
)


@pytest.fixture
def build(mmdet):
    """A function that builds a registered module of MMDetection from its config."""
    config = importlib.import_module("mmengine.config").ConfigDict
    return lambda options: mmdet.registry.MODELS.build(config(options))


@pytest.fixture
def batch():
    """Two images as MMDetection's data loader gives them, with two objects each."""
    structures = importlib.import_module("mmdet.structures")
    data = importlib.import_module("mmengine.structures").InstanceData
    samples = []
    for _ in range(2):
        sample = structures.DetDataSample(metainfo={"img_shape": (96, 128), "ori_shape": (96, 128), "scale_factor": (1.0, 1.0)})
        boxes = torch.tensor([[4.0, 8.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]])
        sample.gt_instances = data(bboxes=boxes, labels=torch.tensor([0, 2]))
        samples.append(sample)
    return {"inputs": [torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8) for _ in range(2)], "data_samples": samples}


PREPROCESSOR = {
    "type": "DetDataPreprocessor",
    "mean": [123.675, 116.28, 103.53],
    "std": [58.395, 57.12, 57.375],
    "bgr_to_rgb": True,
    "pad_size_divisor": 32,
}
COORDINATES = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4, "target_stds": [0.1, 0.1, 0.2, 0.2]}
L1 = {"type": "L1Loss", "loss_weight": 1.0}
NMS = {"type": "nms", "iou_threshold": 0.5}


def assigner(positive, negative):
    return {"type": "MaxIoUAssigner", "pos_iou_thr": positive, "neg_iou_thr": negative, "min_pos_iou": 0, "ignore_iof_thr": -1}


def retinanet(backbone, neck):
    return {
        "type": "RetinaNet",
        "data_preprocessor": PREPROCESSOR,
        "backbone": {"type": "VertebraBackbone", **backbone},
        "neck": neck,
        "bbox_head": {
            "type": "RetinaHead",
            "num_classes": 3,
            "in_channels": 16,
            "feat_channels": 16,
            "stacked_convs": 1,
            "anchor_generator": {
                "type": "AnchorGenerator",
                "octave_base_scale": 4,
                "scales_per_octave": 1,
                "ratios": [1.0],
                "strides": [8, 16, 32, 64, 128],
            },
            "bbox_coder": COORDINATES,
            "loss_bbox": L1,
        },
        "train_cfg": {
            "assigner": assigner(0.5, 0.4),
            "sampler": {"type": "PseudoSampler"},
            "allowed_border": -1,
            "pos_weight": -1,
        },
        "test_cfg": {"nms_pre": 100, "score_thr": 0.0, "nms": NMS, "max_per_img": 5},
    }


def faster_rcnn(backbone, neck):
    sampler = {"type": "RandomSampler", "num": 16, "pos_fraction": 0.5, "neg_pos_ub": -1}
    pool = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2, "use_torchvision": True}
    proposals = {"nms_pre": 50, "max_per_img": 20, "nms": NMS, "min_bbox_size": 0}
    anchors = {"type": "AnchorGenerator", "scales": [8], "ratios": [0.5, 1.0, 2.0], "strides": [4, 8, 16, 32, 64]}
    return {
        "type": "FasterRCNN",
        "data_preprocessor": PREPROCESSOR,
        "backbone": {"type": "VertebraBackbone", **backbone},
        "neck": neck,
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": 16,
            "feat_channels": 16,
            "anchor_generator": anchors,
            "bbox_coder": COORDINATES,
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
            "loss_bbox": L1,
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": pool,
                "out_channels": 16,
                "featmap_strides": [4, 8, 16, 32],
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": 16,
                "fc_out_channels": 16,
                "num_classes": 3,
                "bbox_coder": COORDINATES,
                "loss_bbox": L1,
            },
        },
        "train_cfg": {
            "rpn": {"assigner": assigner(0.7, 0.3), "sampler": sampler, "allowed_border": -1, "pos_weight": -1},
            "rpn_proposal": proposals,
            "rcnn": {"assigner": assigner(0.5, 0.5), "sampler": sampler | {"add_gt_as_proposals": True}, "pos_weight": -1},
        },
        "test_cfg": {"rpn": proposals, "rcnn": {"score_thr": 0.0, "nms": NMS, "max_per_img": 5}},
    }


FPN = {"type": "FPN", "in_channels": [64, 128, 256, 512], "out_channels": 16, "num_outs": 5}
FPN_FROM_C3 = {"type": "FPN", "in_channels": [128, 256, 512], "out_channels": 16, "num_outs": 5, "add_extra_convs": "on_input"}
PYRAMID = {"pyramid": "fpn", "out_channels": 16}


@pytest.mark.parametrize(
    "config",
    [
        faster_rcnn({"name": "resnet18"}, FPN),
        faster_rcnn({"name": "resnet18", **PYRAMID}, None),
        retinanet({"name": "resnet18", "out_indices": [1, 2, 3]}, FPN_FROM_C3),
        retinanet({"name": "resnet18", "out_features": ["c3", "c4", "c5"], **PYRAMID, "extra_level": "p6p7"}, None),
    ],
    ids=["faster_rcnn", "faster_rcnn with our pyramid", "retinanet", "retinanet with our pyramid"],
)
def test_a_detector_trains_and_predicts(build, batch, config):
    model = build(config)
    model.init_weights()
    losses, _ = model.parse_losses(model.train()(**model.data_preprocessor(batch, True), mode="loss"))
    assert losses.isfinite()
    losses.backward()
    backbone = model.backbone.backbone
    conv1 = backbone.body.conv1 if "pyramid" in config["backbone"] else backbone.conv1
    assert float(conv1.weight.grad.abs().sum()) > 0
    torch.optim.SGD(model.parameters(), lr=0.001).step()
    predictions = model.eval().test_step(batch)
    assert len(predictions) == 2
    assert predictions[0].pred_instances.bboxes.shape[1] == 4
    assert len(predictions[0].pred_instances) == 5


def test_maps_are_our_own_backbones_maps(build):
    model = build({"type": "VertebraBackbone", "name": "resnet18", "out_indices": (-3, 3), "norm": "gn"}).eval()
    ours = build_backbone("resnet18", out_features=["c3", "c5"], norm="gn").eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    maps = model(images)
    assert isinstance(maps, tuple)
    for found, expected in zip(maps, ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (model.channels, model.strides) == ([128, 512], [8, 32])


def test_levels_of_a_pyramid_can_be_chosen(build):
    model = build({"type": "VertebraBackbone", "name": "resnet18", "out_indices": [1, 4], **PYRAMID}).eval()
    ours = build_fpn_backbone("resnet18", out_channels=16).eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    expected = ours(images)
    for found, level in zip(model(images), ("1", "pool"), strict=True):
        torch.testing.assert_close(found, expected[level], rtol=0, atol=0)


@pytest.mark.usefixtures("mmdet")
def test_channels_are_known_before_anything_is_built():
    from backbones.plugins.mmdet import channels

    assert channels("resnet50") == [256, 512, 1024, 2048]
    assert channels("resnet50", out_indices=(1, 3)) == [512, 2048]
    assert channels("resnet18", pyramid="fpn", out_channels=8) == [8] * 5


def test_weights_stay_through_init_weights_and_freezing_through_train(build, tmp_path, randomize):
    path = tmp_path / "resnet18.pth"
    torch.save(randomize(torchvision.models.resnet18()).state_dict(), path)
    config = faster_rcnn({"name": "resnet18", "weights": str(path), "norm": "bn", "trainable_layers": 2}, FPN)
    model = build(config)
    model.backbone.backbone.init_weights = model.backbone.backbone.conv1.reset_parameters  # which MMDetection must not call
    model.init_weights()
    ours = build_backbone("resnet18", weights=str(path), norm="bn").eval()
    images = torch.rand(2, 3, 64, 96)
    for found, expected in zip(model.eval().backbone(images), ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    model.train()
    backbone = model.backbone.backbone
    assert not backbone.layer2[0].bn1.training
    assert backbone.layer3[0].bn1.training
    assert not backbone.layer2[0].conv1.weight.requires_grad


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet5"}, "Did you mean 'resnet50'"),
        ({"name": "resnet18", "out_indices": [4]}, "0 c2, 1 c3, 2 c4, 3 c5"),
        ({"name": "resnet18", "out_indices": [0], "out_features": ["c2"]}, "leave one out"),
        ({"name": "resnet18", "trainable_layer": 3}, "trainable_layer"),
        ({"name": "resnet18", "init_cfg": {"type": "Pretrained", "checkpoint": "torchvision://resnet18"}}, "weights=PATH"),
    ],
)
@pytest.mark.usefixtures("mmdet")
def test_a_mistake_is_one_sentence(options, message):
    from backbones.plugins.mmdet import VertebraBackbone

    with pytest.raises(UserError, match=message):
        VertebraBackbone(**options)
