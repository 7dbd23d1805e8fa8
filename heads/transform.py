"""What every detector does to images before its backbone: resizing, normalising and padding; uint8 and other channels too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from backbones import Backbone, UserError
from heads.crowd import set_crowd_apart
from heads.mask_paste import paste_masks
from heads.option_checks import check_positive

Targets = list[dict[str, Tensor]]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class DetectionTransform(GeneralizedRCNNTransform):
    """torchvision's normalisation, resizing and padding of a list of images, which also takes uint8 images.

    With `resize_in_training=False` training images are taken at the size they come in (the loader has resized them); in
    evaluation they are always resized here, and predictions are given in the original image's pixels.
    """

    def __init__(
        self,
        min_size: int | list[int],
        max_size: int,
        image_mean: list[float],
        image_std: list[float],
        *,
        resize_in_training: bool = True,
    ) -> None:
        super().__init__(min_size, max_size, image_mean, image_std, _skip_resize=not resize_in_training)
        self._training_shapes: list[tuple[int, int]] = []
        self._pastes_masks = True

    def limit_training_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Pad training batches to the smallest of these (H, W) that holds them, in place of the next multiple of 32.

        A compiled backbone is compiled once for each shape it meets; without this, COCO has hundreds.
        """
        self._training_shapes = sorted(shapes, key=lambda shape: shape[0] * shape[1])

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Images (C, H_i, W_i) -> (B, C, H, W), padded with zeros on the right and at the bottom."""
        if self.training and self._training_shapes:
            height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
            for shape in self._training_shapes:
                if height <= shape[0] and width <= shape[1]:
                    batch = images[0].new_zeros((len(images), images[0].shape[0], *shape))
                    for place, image in zip(batch, images, strict=True):
                        place[:, : image.shape[1], : image.shape[2]] = image
                    return batch
        return super().batch_images(images, size_divisible)

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> tuple[ImageList, Targets | None]:
        """Images (C, H_i, W_i), uint8 or float in [0, 1] -> a padded batch, and targets whose crowd is set apart."""
        image_list, targets = super().forward(images, targets)
        if targets is not None:
            targets = [set_crowd_apart(target) for target in targets]
        return image_list, targets

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Predictions in the pixels of the original images, masks at their size."""
        if self.training or not result:
            return result
        masks = [prediction.pop("masks", None) for prediction in result]
        result = super().postprocess(result, image_shapes, original_image_sizes)
        for prediction, own, size in zip(result, masks, original_image_sizes, strict=True):
            if own is not None:
                prediction["masks"] = paste_masks(own, prediction["boxes"], size) if self._pastes_masks else own
        return result

    @contextmanager
    def masks_as_predicted(self) -> Iterator[None]:
        """Within it, masks are given as the head predicts them, (N, 1, M, M) of their boxes: 300 of them pasted into an image
        of 4000 x 3000 are 14 GB."""
        self._pastes_masks = False
        try:
            yield
        finally:
            self._pastes_masks = True

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation; uint8 is scaled to [0, 1] first."""
        if image.dtype == torch.uint8:
            image = image.float() / 255
        return super().normalize(image)


def detection_transform(
    backbone: Backbone,
    *,
    min_size: int | list[int],
    max_size: int,
    image_mean: list[float] | None,
    image_std: list[float] | None,
    resize_in_training: bool,
) -> DetectionTransform:
    """The transform of a detector on this backbone; its options are those of `faster_rcnn`.

    Raises:
        UserError: another number of means or deviations is given than the backbone's images have channels.
    """
    return DetectionTransform(
        min_size,
        max_size,
        channel_constants("image_mean", image_mean, IMAGENET_MEAN, backbone.in_channels),
        channel_constants("image_std", image_std, IMAGENET_STD, backbone.in_channels),
        resize_in_training=resize_in_training,
    )


def channel_constants(option: str, given: list[float] | None, imagenet: tuple[float, ...], in_channels: int) -> list[float]:
    """A number for each channel of an image: those given, or ImageNet's, or their mean where images are not of three channels.

    Raises:
        UserError: another number of them is given than the images have channels, or a deviation that is not above 0.
    """
    if given is None:
        return list(imagenet) if in_channels == 3 else [sum(imagenet) / 3] * in_channels
    if len(given) != in_channels:
        raise UserError(
            f"{option} has {len(given)} numbers, but the backbone takes images of {in_channels} channels: give one for each."
        )
    if option.endswith("std"):
        check_positive(option, given)
    return list(given)
