"""backbones/check_maps.py and check.py: each way to break the contract is found at build, and named."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from backbones import Backbone, FeatureSpec, UserError, build_backbone, build_fpn_backbone, register_backbone
from backbones.check import check_backbone, main
from backbones.check_maps import ContractError, check_maps
from backbones.registry import BACKBONES
from heads import faster_rcnn


class Patches(Backbone):
    """A backbone that keeps its promises; the subclasses below each break one."""

    def __init__(self):
        super().__init__()
        self.feature_specs = {"c3": FeatureSpec(8, 8), "c4": FeatureSpec(16, 16)}
        self.fine = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.coarse = nn.Conv2d(8, 16, 3, stride=2, padding=1)

    def forward(self, images):
        fine = self.fine(images).relu()
        return {"c3": fine, "c4": self.coarse(fine)}


class ChannelsLast(Patches):
    def forward(self, images):
        return {name: level.permute(0, 2, 3, 1) for name, level in super().forward(images).items()}


class WrongStride(Patches):
    def __init__(self):
        super().__init__()
        self.feature_specs = {"c3": FeatureSpec(8, 8), "c4": FeatureSpec(16, 32)}


class WrongChannels(Patches):
    def __init__(self):
        super().__init__()
        self.feature_specs = {"c3": FeatureSpec(8, 8), "c4": FeatureSpec(24, 16)}


class OtherNames(Patches):
    def forward(self, images):
        return dict(zip(("p3", "p4"), super().forward(images).values(), strict=True))


class GivesAList(Patches):
    def forward(self, images):
        return list(super().forward(images).values())


class GivesTokens(Patches):
    def forward(self, images):
        return {name: level.flatten(2) for name, level in super().forward(images).items()}


class GreyOnly(Patches):
    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(1, 8, 9, stride=8, padding=4)


class Undeclared(Patches):
    def __init__(self):
        super().__init__()
        del self.feature_specs


BREACHES = [
    (ChannelsLast, r"Level 'c3' .*\(1, 8, 16, 8\).*expected \(1, 8, 8, 16\).*NHWC.*permute\(0, 3, 1, 2\)"),
    (WrongStride, r"Level 'c4' .*\(1, 16, 4, 8\).*expected \(1, 16, 2, 4\).*stride 32.*its stride is about 16"),
    (WrongChannels, r"Level 'c4' .*\(1, 16, 4, 8\).*expected \(1, 24, 4, 8\).*it has 16 channels"),
    (OtherNames, r"gives the maps 'p3', 'p4', but feature_specs declares 'c3', 'c4'"),
    (GivesAList, r"gives a list; it must give \{name: map\} for c3, c4"),
    (GivesTokens, r"Level 'c3' .*\(1, 8, 128\).*four dimensions"),
    (GreyOnly, r"cannot take an image \(1, 3, 64, 128\).*in_channels"),
    (Undeclared, r"Undeclared sets no feature_specs"),
]


@pytest.fixture
def registered(monkeypatch):
    """A function that registers a backbone class for the length of a test, and gives its name."""
    monkeypatch.setattr(BACKBONES, "_constructors", dict(BACKBONES._constructors))

    def register(backbone):
        @register_backbone(backbone.__name__)
        def build(*, in_channels=3, norm="bn", out_features=None):
            return backbone()

        return backbone.__name__

    return register


@pytest.mark.parametrize(("backbone", "message"), BREACHES, ids=[backbone.__name__ for backbone, _ in BREACHES])
def test_a_breach_is_named_when_a_pyramid_is_built(backbone, message, registered):
    with pytest.raises(ContractError, match=message):
        build_fpn_backbone(registered(backbone), out_channels=16)


@pytest.mark.parametrize(("breach", "message"), BREACHES[:4], ids=[backbone.__name__ for backbone, _ in BREACHES[:4]])
def test_a_breach_is_named_when_a_head_is_built(breach, message):
    class WithOutChannels(breach):
        """One number of channels on every level, as a head needs."""

        def __init__(self):
            super().__init__()
            self.coarse = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.out_channels = 8 if breach is not WrongChannels else 24
            channels = self.out_channels
            self.feature_specs = {name: FeatureSpec(channels, spec.stride) for name, spec in self.feature_specs.items()}

    with pytest.raises(
        ContractError, match=r"Level 'c\d' of WithOutChannels|WithOutChannels.forward gives the maps 'p3', 'p4'"
    ):
        faster_rcnn(WithOutChannels(), 3)


def test_too_few_anchors_are_named():
    with pytest.raises(UserError, match=r"anchor_sizes has 4 entries, but there are 5 feature levels \(0, 1, 2, 3, pool\)"):
        faster_rcnn(build_fpn_backbone("resnet18", out_channels=16), 3, anchor_sizes=[[32], [64], [128], [256]])


def test_a_check_leaves_no_trace(randomize):
    backbone = randomize(build_backbone("resnet18", norm="bn", trainable_layers=3)).train()
    backbone.layer4[0].bn1.eval()
    state, modes = torch.get_rng_state(), [module.training for module in backbone.modules()]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    check_maps(backbone)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in backbone.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_it_checks_on_the_meta_device_too():
    with torch.device("meta"):
        check_maps(build_backbone("resnet50"))
        with pytest.raises(ContractError, match="Level 'c4'"):
            check_maps(WrongStride())


def test_a_backbone_that_keeps_its_promises_passes_line_by_line(registered):
    lines = list(check_backbone(registered(Patches)))
    assert lines[0] == "builds: c3 8 channels, stride 8, c4 16 channels, stride 16"
    assert lines[-1] == "trains in torchvision's FasterRCNN, with pyramid fpn"
    assert len(lines) == 6


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_18", "cifar_resnet20"])
def test_own_backbones_pass(name):
    assert len(list(check_backbone(name))) == 6


def test_dilated_backbones_pass_on_a_single_map():
    assert list(check_backbone("resnet18", output_stride=16, in_channels=1))[-1].endswith("with pyramid single")


class RoundsDown(Patches):
    def __init__(self):
        super().__init__()
        self.fine = nn.Conv2d(3, 8, 8, stride=8)


class HasALooseEnd(Patches):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(16, 10)


class LooksAtItsNeighbours(Patches):
    def forward(self, images):
        return super().forward(images - images.mean(0))


class ForgetsToFreeze(Patches):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(16)

    def forward(self, images):
        maps = super().forward(images)
        return {**maps, "c4": self.norm(maps["c4"])}

    def train(self, mode=True):
        return nn.Module.train(self, mode)


class HidesAParameter(Patches):
    def stages(self):
        return {"fine": [self.fine]}


class LooksAtTheBatchInAll(Patches):
    def forward(self, images):
        return {name: level - level.mean() for name, level in super().forward(images).items()}


class GivesNoNumber(Patches):
    def forward(self, images):
        return {name: level / (images.sum() * 0) for name, level in super().forward(images).items()}


class GivesHalves(Patches):
    def forward(self, images):
        return {name: level.half() for name, level in super().forward(images).items()}


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (RoundsDown, "Level 'c3' .*sizes are rounded up"),
        (HasALooseEnd, "classifier.weight trains and gets no gradient"),
        (LooksAtItsNeighbours, "Level 'c3' of an image differs"),
        (ForgetsToFreeze, "trainable_layers=0 a frozen stage's statistics move"),
        (HidesAParameter, "Parameter coarse.weight is in no stage"),
        (LooksAtTheBatchInAll, "Level 'c3' of an image differs"),
        (GivesNoNumber, "Level 'c3' of an ordinary image is not finite"),
        (GivesHalves, "Level 'c3' is torch.float16 for an image of torch.float32"),
    ],
)
def test_what_only_training_or_odd_sizes_show_is_found(backbone, message, registered):
    with pytest.raises(ContractError, match=message):
        list(check_backbone(registered(backbone)))


def test_the_command_line_says_what_holds_and_what_does_not(registered, monkeypatch, capsys):
    for name, status in ((registered(Patches), None), (registered(RoundsDown), 1), ("resnet5", 2)):
        monkeypatch.setattr(sys, "argv", ["check", name])
        if status is None:
            main()
            assert capsys.readouterr().out.startswith("builds: c3 8 channels")
        else:
            with pytest.raises(SystemExit) as ended:
                main()
            assert ended.value.code == status
            assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_a_backbone_in_a_file_of_ones_own_is_checked_by_module_and_name(tmp_path):
    (tmp_path / "my_module.py").write_text(
        "from torch import nn\n"
        "from backbones import Backbone, FeatureSpec, register_backbone\n\n\n"
        "class Patches(Backbone):\n"
        "    def __init__(self, in_channels):\n"
        "        super().__init__()\n"
        "        self.in_channels = in_channels\n"
        "        self.feature_specs = {'c3': FeatureSpec(8, 8)}\n"
        "        self.convolution = nn.Conv2d(in_channels, 8, 9, stride=8, padding=4)\n\n"
        "    def forward(self, images):\n"
        "        return {'c3': self.convolution(images)}\n\n\n"
        "@register_backbone('my_backbone')\n"
        "def my_backbone(*, in_channels=3, norm='bn', out_features=None):\n"
        "    return Patches(in_channels)\n"
    )
    command = [sys.executable, "-m", "backbones.check", "my_module:my_backbone", "in_channels=2"]
    root = str(Path(__file__).parents[2])
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "builds: c3 8 channels, stride 8" in result.stdout


def test_words_of_a_config_are_what_they_mean(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["check", "resnet18", "pre_activation=false", "out_features=['c4']", "trainable_layers=null"]
    )
    main()
    assert capsys.readouterr().out.startswith("builds: c4 256 channels, stride 16\n")


class FollowsNoRequest(Patches):
    """It gives all its maps, whatever is asked for."""


def test_what_is_not_a_backbone_or_not_the_one_asked_for_is_refused(registered):
    name = registered(FollowsNoRequest)
    with pytest.raises(UserError, match=r"asked for out_features c4 and gives c3, c4"):
        build_backbone(name, out_features=["c4"])
    register_backbone("a_module")(lambda *, in_channels=3, norm="bn", out_features=None: nn.Conv2d(3, 3, 1))
    with pytest.raises(UserError, match=r"'a_module' is built as a Conv2d.*backbones\.Backbone"):
        build_backbone("a_module")
    register_backbone("takes_nothing")(lambda: Patches())
    with pytest.raises(UserError, match=r"'takes_nothing' does not take in_channels, norm, out_features"):
        build_backbone("takes_nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out_channels": 0}, "out_channels is 0: give a whole number of at least 1"),
        ({"out_channels": "a"}, "out_channels is 'a'"),
        ({"in_channels": 0}, "in_channels is 0"),
        ({"in_channels": True}, "in_channels is True"),
        ({"out_features": "c5"}, r"out_features is 'c5': give a list of names, such as \['c5'\]"),
        ({"deformable_stages": "c5"}, r"deformable_stages is 'c5': give a list"),
    ],
)
def test_options_of_the_wrong_kind_are_refused_at_build(options, message):
    with pytest.raises(UserError, match=message):
        build_fpn_backbone("resnet18", **options)


@pytest.mark.parametrize("options", [{"name": "cifar_resnet20"}, {"name": "resnet18", "width": 24, "stem": "deep"}])
def test_narrow_networks_have_fewer_groups(options):
    backbone = build_backbone(**options, norm="gn")
    groups = {module.num_groups for module in backbone.modules() if isinstance(module, nn.GroupNorm)}
    assert max(groups) <= 32
    check_maps(backbone)
