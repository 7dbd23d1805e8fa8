"""engine/classification/weights.py: published weights give their library's scores, and say what became of them."""

import json

import pytest
import skimage.data
import torch
import torchvision
from PIL import Image

from backbones.errors import UserError
from engine.classification.job import ClassificationJob
from engine.evaluate import evaluate
from engine.predict import predict_images
from engine.train import train
from tests.engine.classification.conftest import write_folders

RESNET18 = ("model.backbone={name: resnet18}", "data.size=40", "data.eval_resize=48")


@pytest.fixture
def published(tmp_path, randomize):
    """torchvision's ResNet-18 for the three colours, and the file of its weights."""
    model = randomize(torchvision.models.resnet18(num_classes=3)).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    return model, tmp_path / "weights.pth"


@torch.no_grad()
def test_published_weights_predict_as_in_their_library(make_config, published):
    theirs, path = published
    job = ClassificationJob(make_config(*RESNET18))
    dataset = job.build_validation_set()
    model = job.build_model(dataset.categories, load_weights=False).eval()
    job.load_weights(model, str(path), dataset)
    assert set(model.backbone.weights_report.used) == set(model.state_dict())
    look = torchvision.transforms._presets.ImageClassification(crop_size=40, resize_size=48)
    images = [dataset[i][0] for i in (0, 5, 11)]
    theirs_seen = [look(torch.from_numpy(dataset.images.read(i)).permute(2, 0, 1)) for i in (0, 5, 11)]
    expected = theirs(torch.stack(theirs_seen)).softmax(1)
    torch.testing.assert_close(torch.stack(job.predict(model, images)).exp(), expected, atol=0.02, rtol=0.05)


def test_a_checkpoint_of_ours_goes_as_weights_and_its_classes_are_checked(make_config, tmp_path, capsys):
    train(make_config("train.epochs=2"))
    weights = tmp_path / "run" / "best.pt"
    (tmp_path / "config.yaml").write_text((tmp_path / "run" / "config.yaml").read_text())
    (score,) = evaluate(str(tmp_path / "config.yaml"), [], job="classification", weights=str(weights))
    assert score.stats == json.loads((tmp_path / "run" / "eval" / "scores.json").read_text())["classification"]["stats"]
    assert f"{weights}: " in capsys.readouterr().out
    other = write_folders(tmp_path / "other", classes=("blue", "green", "yellow"))
    with pytest.raises(UserError, match=r"trained on other classes than .*other has: 'red' \(id 2\) against 'yellow'"):
        evaluate(str(tmp_path / "config.yaml"), [f"data.val.images={other}"], job="classification", weights=str(weights))


def test_weights_of_another_number_of_classes_are_refused(make_config, published, tmp_path):
    two = write_folders(tmp_path / "two", classes=("blue", "green"))
    job = ClassificationJob(make_config(*RESNET18, val=two))
    dataset = job.build_validation_set()
    model = job.build_model(dataset.categories, load_weights=False)
    with pytest.raises(UserError, match=r"fc\.weight is 3x512 in the file .* 2x512 in the model\. Give the model as many"):
        job.load_weights(model, str(published[1]), dataset)


# ---- Really trained weights ----

# Two of ImageNet's thousand: n02124075 is the Egyptian cat.
PHOTOGRAPHS = {"n07920052/coffee.png": skimage.data.coffee, "n02124075/cat.png": skimage.data.chelsea}
V1 = ["model.backbone.name=resnet50_v1"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name, photograph in PHOTOGRAPHS.items():
        (folder / name).parent.mkdir()
        Image.fromarray(photograph()).save(folder / name)
    return folder


@pytest.mark.shared_data
def test_photographs_in_folders_of_wordnet_ids_are_scored_right(shared, photographs, tmp_path, capsys):
    weights = shared / "weights" / "resnet50_v1_imagenet.safetensors"
    overrides = [*V1, f"data.val.images={photographs}"]
    (score,) = evaluate(
        "configs/cls_r50_imagenet.yaml", overrides, job="classification", weights=str(weights), output_dir=str(tmp_path)
    )
    assert f"{weights}: 320 tensors used" in capsys.readouterr().out
    assert (score.stats["top1"], score.stats["top5"]) == (1.0, 1.0)
    assert {name: value for name, value in score.per_class.items() if value >= 0} == {"espresso": 1, "Egyptian cat": 1}
    coffee = json.loads((tmp_path / "predictions.json").read_text())[1]
    assert (coffee["truth"], coffee["top"][0]["class"]) == ("espresso", "espresso")
    assert coffee["top"][0]["probability"] > 0.9


@pytest.mark.shared_data
def test_photographs_of_no_data_set_are_named(shared, photographs, tmp_path, capsys):
    """The classes are `data.classes`: no validation set is looked for."""
    weights = str(shared / "weights" / "resnet50_v1_imagenet.safetensors")
    rows = predict_images(
        "configs/cls_r50_imagenet.yaml",
        [str(photographs)],
        output_dir=str(tmp_path),
        weights=weights,
        overrides=V1,
        device="cpu",
    )
    assert [row["file_name"] for row in rows] == [str(photographs / name) for name in sorted(PHOTOGRAPHS)]
    cat, coffee = ([entry["class"] for entry in row["top"]] for row in rows)
    assert coffee[0] == "espresso"
    assert set(cat[:3]) == {"Egyptian cat", "tiger cat", "tabby"}
    assert f"{photographs / 'n07920052/coffee.png'}: espresso " in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["cat.png", "coffee.png"]
