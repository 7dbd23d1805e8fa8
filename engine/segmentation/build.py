"""The one place that turns a segmenter's config into objects."""

from pathlib import Path

from backbones.errors import UserError, did_you_mean
from engine.build import build_body, build_pyramid, find_data, read_annotations
from engine.config import CocoFiles
from engine.data.annotations import Annotations, Category
from engine.data.augmentations import RESIZING
from engine.data.sources import Split
from engine.distributed import World
from engine.segmentation.classes import class_names, named_values, span
from engine.segmentation.config import ImageFiles, SegmentationConfig
from engine.segmentation.dataset import SegmentationDataset, class_counts, spread_indices
from engine.segmentation.files import find_pairs
from engine.segmentation.label_maps import read_label_map
from engine.segmentation.sources import LabelMapFiles, LabelSource, PaintedInstances
from heads import Segmenter, build_segmenter

_POOLS_TO_ONE_PIXEL = ("deeplabv3", "deeplabv3plus")
_CHECKED = 16  # images that are read before training starts, spread over a set


def build_model(config: SegmentationConfig, *, num_classes: int, load_weights: bool) -> Segmenter:
    """The segmenter of a config.

    Args:
        load_weights: whether to load the backbone's weights; a checkpoint brings its own.

    Raises:
        UserError: weights that cannot be had or do not fit, or a backbone the head cannot be built on.
    """
    head, body = config.model.head, config.model.backbone
    if config.model.pyramid is not None:
        backbone = build_pyramid(body, config.model.pyramid, load_weights=load_weights)
    else:
        backbone = build_body(body, load_weights=load_weights)
    return build_segmenter(head.name, backbone, num_classes, **head.options())


def evaluation_size(config: SegmentationConfig) -> int | None:
    """The shorter side of an image in evaluation, pixels; None for its own."""
    size = config.data.min_size
    return max(size) if isinstance(size, list) else size


def build_training_set(config: SegmentationConfig, *, world: World | None = None) -> SegmentationDataset:
    """The augmented training set.

    Raises:
        UserError: files that are missing or malformed, maps with fewer than two classes in them, or a batch too small for the
            head's norm.
    """
    if world is not None:
        check_batch(config, world)
    source = _build_source(config, "train", world=world)
    from engine.segmentation.augmentation import build_augmentation  # it loads albumentations, which takes seconds

    dataset = SegmentationDataset(
        source,
        augmentation=build_augmentation(config.data, ignored=source.ignored),
        seed=config.seed,
        group_shapes=config.data.crop_size is None and not any(step.name in RESIZING for step in config.data.augmentations),
    )
    check_labels(dataset, config, in_training=True)
    return dataset


def build_validation_set(config: SegmentationConfig, *, world: World | None = None) -> SegmentationDataset:
    """The validation set, images as they are: they are resized on the device.

    Raises:
        UserError: files that are missing or malformed, or maps in which no pixel has a class.
    """
    dataset = SegmentationDataset(_build_source(config, "val", world=world), seed=config.seed)
    check_labels(dataset, config, in_training=False)
    return dataset


def check_batch(config: SegmentationConfig, world: World) -> None:
    """Check that the head's norms can work with what a process sees at a time.

    Raises:
        UserError: one image, which DeepLab pools to a single value a channel, or sync_bn on several CPUs.
    """
    head = config.model.head
    norm = head.options().get("norm", "bn")
    images = config.train.batch_size // (world.size * config.train.accumulate)
    if norm == "sync_bn" and world.size > 1 and world.device.type == "cpu":
        raise UserError("model.head.norm=sync_bn needs GPUs where there are several processes. On CPUs use bn or gn.")
    synchronised = norm == "sync_bn" and world.size > 1
    if head.name in _POOLS_TO_ONE_PIXEL and norm != "gn" and images == 1 and not synchronised:
        raise UserError(
            f"{head.name} pools each image to one pixel and normalises it over the batch: a forward pass needs two images. "
            f"train.batch_size={config.train.batch_size} over {world.size} processes with "
            f"train.accumulate={config.train.accumulate} leaves one. Raise train.batch_size, or set model.head.norm=gn."
        )


def check_labels(dataset: SegmentationDataset, config: SegmentationConfig, *, in_training: bool) -> None:
    """Read a few images and their labels: what is wrong with all of them is said now, not in the middle of a run.

    Raises:
        UserError: as `LabelSource.read`; or there is nothing to score, as no pixel has a class, or nothing to learn, as all
            have the same.
    """
    spread = spread_indices(len(dataset), _CHECKED)
    for index in spread:
        dataset.source.read(index)
    needed = 2 if in_training else 1
    counts = class_counts(dataset, spread)
    for index in sorted(set(range(len(dataset))) - set(spread)):
        if (counts[:-1] > 0).sum() >= needed:
            return
        counts += class_counts(dataset, [index])
    present = [category for category, count in zip(dataset.categories, counts[:-1], strict=True) if count]
    if len(present) >= needed:
        return
    what = f"only the class {present[0].name!r} (value {present[0].id})" if present else "no class"
    beside = f" and {counts[-1]} pixels of no class (data.ignore_index={config.data.ignore_index})" if counts[-1] else ""
    raise UserError(
        f"The labels of all {len(dataset)} images in {dataset.path} have {what}{beside}: there is nothing to "
        f"{'learn' if in_training else 'score'}. Where 255 is a class, as in a mask of 0 and 255: "
        "data.ignore_index=null data.classes='{0: background, 255: NAME}'."
    )


def _build_source(config: SegmentationConfig, split: Split, *, world: World | None) -> LabelSource:
    named = config.data.train if split == "train" else config.data.val
    if isinstance(named, ImageFiles) and named.labels is not None:
        return _label_maps(config, named, split)
    if isinstance(named, ImageFiles):
        assert named.annotations is not None, "the config takes one of the two"
        paths = find_data(CocoFiles(images=named.images, annotations=named.annotations), split=split)
    else:
        paths = find_data(named, split=split, world=world)
    annotations = read_annotations(paths.annotations, world=world)
    if not annotations.has_masks:
        raise UserError(
            f"{paths.annotations} has no masks (`segmentation`), of which label maps are painted. "
            "Give a file that has them, or a folder of label maps: `labels` in place of `annotations`."
        )
    return PaintedInstances(paths.images, annotations, keep=_kept_categories(config, annotations))


def _label_maps(config: SegmentationConfig, files: ImageFiles, split: Split) -> LabelMapFiles:
    assert files.labels is not None
    pairs, notes = find_pairs(files, split=split)
    classes = named_values(config.data)
    if classes is None:
        some = spread_indices(len(pairs), _CHECKED)
        values = sorted({int(value) for i in some for value in _values(pairs[i])})
        raise UserError(
            "data.classes is needed for label maps: the names of the classes in the order of their pixel values, a file of "
            f"them, one a line, or {{value: name}}. {len(some)} maps of {files.labels} have the values {span(values)}; "
            f"data.ignore_index={config.data.ignore_index} is no class."
        )
    return LabelMapFiles(pairs, folder=Path(files.labels), classes=classes, notes=notes)


def _values(pair: tuple[Path, Path]) -> set[int]:
    image, labels = pair
    return set(read_label_map(labels, image=image).ravel().tolist())


def _kept_categories(config: SegmentationConfig, annotations: Annotations) -> list[Category] | None:
    given = config.data.classes
    if given is None:
        return None
    if isinstance(given, dict):
        raise UserError(
            f"data.classes gives names to pixel values, and {annotations.path} has its own: list the names of the categories "
            "to keep, or leave it out for all."
        )
    by_name = {category.name: category for category in annotations.categories}
    kept = []
    for name in class_names(given):
        if name not in by_name:
            raise UserError(f"data.classes: {annotations.path} has no category {name!r}.{did_you_mean(name, by_name)}")
        if by_name[name] in kept:
            raise UserError(f"data.classes names {name!r} twice.")
        kept.append(by_name[name])
    return kept
