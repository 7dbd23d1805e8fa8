"""Our backbones in detectron2, which is not in the package index: where it is not installed, what it says of itself stands in.

That stand-in has what the plug-out relies on, as written in detectron2 0.6: modeling/backbone/backbone.py (Backbone, an
abstract module with output_shape and size_divisibility), modeling/backbone/build.py (the registry's entries are called with the
config and a ShapeSpec of the images, whose channels are as many as MODEL.PIXEL_MEAN has numbers, and give a Backbone),
layers/shape_spec.py, fvcore/common/registry.py (entries by the function's name) and yacs/config.py (a dictionary with
attributes, made of a dictionary, or empty and open to new keys). With detectron2 installed the tests run on detectron2, and the
last ones train its own detectors.
"""

import abc
import collections
import importlib
import sys
import types
import warnings

import pytest
import torch
import torchvision
from torch import nn

from backbones import UserError, build_backbone, build_fpn_backbone

# The warnings are detectron2's own, of newer versions of torch.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("detectron2.modeling")
    INSTALLED = True
except ImportError:
    INSTALLED = False

needs_detectron2 = pytest.mark.skipif(not INSTALLED, reason="detectron2 is not installed, and not in the package index")


class CfgNode(dict):
    def __init__(self, init_dict=None, key_list=None, new_allowed=False):
        super().__init__({key: CfgNode(value) if type(value) is dict else value for key, value in (init_dict or {}).items()})
        self.__dict__["__new_allowed__"] = new_allowed

    def __getattr__(self, name):
        if name not in self:
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name, value):
        self[name] = value


class Backbone(nn.Module, metaclass=abc.ABCMeta):
    @abc.abstractmethod
    def forward(self):
        """Subclasses give a dictionary of maps."""

    @property
    def size_divisibility(self):
        return 0


class Registry:
    def __init__(self):
        self.entries = {}

    def register(self, entry):
        assert entry.__name__ not in self.entries
        self.entries[entry.__name__] = entry

    def get(self, name):
        return self.entries[name]


def stand_in():
    """The modules of detectron2 that the plug-out imports, by name."""
    modules = {name: types.ModuleType(name) for name in ("detectron2", *(f"detectron2.{m}" for m in MODULES))}
    config, layers, modeling = (modules[f"detectron2.{name}"] for name in MODULES)
    config.CfgNode = CfgNode
    layers.ShapeSpec = collections.namedtuple("ShapeSpec", ["channels", "height", "width", "stride"], defaults=[None] * 4)
    modeling.Backbone, modeling.BACKBONE_REGISTRY = Backbone, Registry()

    def build(cfg, input_shape=None):
        input_shape = input_shape or layers.ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN))
        backbone = modeling.BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME)(cfg, input_shape)
        assert isinstance(backbone, Backbone)
        return backbone

    modeling.build_backbone = build
    config.get_cfg = lambda: CfgNode(
        {"MODEL": {"BACKBONE": {"NAME": "build_resnet_backbone"}, "PIXEL_MEAN": [103.53, 116.28, 123.675]}}
    )
    return modules


MODULES = ("config", "layers", "modeling")


@pytest.fixture(scope="module")
def plugin():
    """Our plug-out, with detectron2 or with its stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        if not INSTALLED:
            for name, module in stand_in().items():
                patch.setitem(sys.modules, name, module)
        imported = importlib.import_module("backbones.plugins.detectron2")
        yield imported
        if not INSTALLED:
            sys.modules.pop(imported.__name__)


@pytest.fixture
def make_cfg(plugin):
    """A function that makes a config of detectron2's for keys below MODEL.VERTEBRA."""

    def make(**keys):
        cfg = importlib.import_module("detectron2.config").get_cfg()
        plugin.add_vertebra_config(cfg)
        cfg.MODEL.BACKBONE.NAME = "build_vertebra_backbone"
        for key, value in ({"NAME": "resnet18"} | keys).items():
            assert key in cfg.MODEL.VERTEBRA
            cfg.MODEL.VERTEBRA[key] = value
        return cfg

    return make


@pytest.fixture
def build(make_cfg):
    """A function that builds a backbone by detectron2's own build_backbone."""
    return lambda **keys: importlib.import_module("detectron2.modeling").build_backbone(make_cfg(**keys))


def shapes(model):
    return {name: (shape.channels, shape.stride) for name, shape in model.output_shape().items()}


def test_maps_are_our_own_backbones_maps_under_detectron2s_names(build):
    model = build(OPTIONS={"output_stride": 16}).eval()
    ours = build_backbone("resnet18", output_stride=16).eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    found, expected = model(images), ours(images)
    assert list(found) == ["res2", "res3", "res4", "res5"]
    for name, level in found.items():
        torch.testing.assert_close(level, expected[name.replace("res", "c")], rtol=0, atol=0)
    assert shapes(model) == {"res2": (64, 4), "res3": (128, 8), "res4": (256, 16), "res5": (512, 16)}
    assert model.size_divisibility == 0


@pytest.mark.parametrize(
    ("extra_level", "names"),
    [("pool", "p2 p3 p4 p5 p6"), ("p6p7", "p2 p3 p4 p5 p6 p7"), ("none", "p2 p3 p4 p5")],
)
def test_levels_of_a_pyramid_are_named_by_their_stride(build, extra_level, names):
    model = build(PYRAMID="fpn", OUT_CHANNELS=16, EXTRA_LEVEL=extra_level).eval()
    ours = build_fpn_backbone("resnet18", out_channels=16, extra_level=None if extra_level == "none" else extra_level).eval()
    ours.load_state_dict(model.backbone.state_dict())
    images = torch.rand(2, 3, 64, 96)
    found = model(images)
    for level, expected in zip(found.values(), ours(images).values(), strict=True):
        torch.testing.assert_close(level, expected, rtol=0, atol=0)
    assert list(found) == list(model.output_shape()) == names.split()
    assert {name: 2 ** int(name[1:]) for name in found} == {name: stride for name, (_, stride) in shapes(model).items()}
    assert model.size_divisibility == 32


def test_names_and_maps_can_be_chosen(build):
    model = build(OUT_FEATURES=["c1", "c4"])
    assert shapes(model) == {"stem": (64, 2), "res4": (256, 16)}
    assert not hasattr(model.backbone, "layer4")
    assert list(build(OUT_FEATURES=["c3", "c4"], FEATURE_NAMES=["fine", "coarse"]).output_shape()) == ["fine", "coarse"]


def test_a_training_step_reaches_the_first_convolution(build):
    model = build(PYRAMID="fpn", OUT_CHANNELS=16).train()
    sum(level.square().mean() for level in model(torch.rand(2, 3, 64, 96)).values()).backward()
    assert float(model.backbone.body.conv1.weight.grad.abs().sum()) > 0


def test_weights_norm_and_freezing_pass_through(build, tmp_path, randomize):
    path = tmp_path / "resnet18.pth"
    torch.save(randomize(torchvision.models.resnet18()).state_dict(), path)
    model = build(WEIGHTS=str(path), NORM="bn", TRAINABLE_LAYERS=2)
    ours = build_backbone("resnet18", weights=str(path), norm="bn").eval()
    images = torch.rand(2, 3, 64, 96)
    for found, expected in zip(model.eval()(images).values(), ours(images).values(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    model.train()
    assert not model.backbone.layer2[0].bn1.training
    assert model.backbone.layer3[0].bn1.training
    assert not model.backbone.layer2[0].conv1.weight.requires_grad


def test_images_have_as_many_channels_as_the_mean(make_cfg):
    cfg = make_cfg()
    cfg.MODEL.PIXEL_MEAN = [0.5]
    model = importlib.import_module("detectron2.modeling").build_backbone(cfg)
    assert model.backbone.in_channels == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NAME": "resnet5"}, "Did you mean 'resnet50'"),
        ({"OUT_FEATURES": ["c3", "c6"]}, "'c6'"),
        ({"OPTIONS": {"output_strid": 16}}, "Did you mean 'output_stride'"),
        ({"FEATURE_NAMES": ["res2", "res3"]}, "give 4 different names"),
        ({"PYRAMID": "fpm"}, "Did you mean 'fpn'"),
        ({"TRAINABLE_LAYERS": 6}, "trainable_layers is 6"),
    ],
)
def test_a_mistake_is_one_sentence(build, keys, message):
    with pytest.raises(UserError, match=message):
        build(**keys)


def test_a_config_without_our_keys_says_how_to_add_them(plugin):
    cfg = importlib.import_module("detectron2.config").get_cfg()
    with pytest.raises(UserError, match="add_vertebra_config"):
        plugin.build_vertebra_backbone(cfg, importlib.import_module("detectron2.layers").ShapeSpec(channels=3))


@needs_detectron2
@pytest.mark.parametrize("names", [["p3", "p4", "p5", "p6", "p7"], ["p2", "p3", "p4", "p5", "p6"]])
def test_detectron2s_own_detectors_train_and_predict(make_cfg, names):
    retina = "p7" in names
    body = {"OUT_FEATURES": ["c3", "c4", "c5"], "EXTRA_LEVEL": "p6p7"} if retina else {}
    cfg = make_cfg(PYRAMID="fpn", OUT_CHANNELS=16, **body)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet" if retina else "GeneralizedRCNN"
    cfg.MODEL.RETINANET.IN_FEATURES = cfg.MODEL.RPN.IN_FEATURES = names
    cfg.MODEL.ROI_HEADS.IN_FEATURES = names[:4]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[4 * 2 ** int(name[1:])] for name in names]
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = "FastRCNNConvFCHead", 1, 16
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    train_and_predict(importlib.import_module("detectron2.modeling").build_model(cfg))


@needs_detectron2
def test_detectron2s_own_pyramid_stands_on_our_backbone(build):
    fpn = importlib.import_module("detectron2.modeling.backbone.fpn")
    model = fpn.FPN(build(), ["res2", "res3", "res4", "res5"], 16, top_block=fpn.LastLevelMaxPool())
    maps = model(torch.rand(1, 3, 64, 96))
    assert list(maps) == ["p2", "p3", "p4", "p5", "p6"]
    sum(level.square().mean() for level in maps.values()).backward()
    assert float(model.bottom_up.backbone.conv1.weight.grad.abs().sum()) > 0


def train_and_predict(model):
    structures = importlib.import_module("detectron2.structures")
    events = importlib.import_module("detectron2.utils.events")
    instances = structures.Instances((96, 128))
    instances.gt_boxes = structures.Boxes(torch.tensor([[4.0, 8.0, 60.0, 70.0], [50.0, 20.0, 120.0, 90.0]]))
    instances.gt_classes = torch.tensor([0, 2])
    batch = [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "instances": instances}] * 2
    with events.EventStorage():
        losses = model.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert float(model.backbone.backbone.body.conv1.weight.grad.abs().sum()) > 0
    assert len(model.eval()(batch)) == 2
