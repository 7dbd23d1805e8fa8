"""RoIAlign (He et al., https://arxiv.org/abs/1703.06870) of all images and levels at once; on a CPU, fast."""

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign


class BatchedRoIAlign(MultiScaleRoIAlign):
    """The numbers and the gradient of `MultiScaleRoIAlign`; on a CPU, each is a weighted sum of rows of one table.

    torchvision's kernel runs on one thread, level by level, and its gradient adds numbers one at a time. A bin is a sum of 16
    places of a map with weights that only the box decides, and PyTorch has a fast kernel for such sums: `embedding_bag`.
    Elsewhere than on a CPU, and where the number of samples depends on the box, torchvision's kernel is taken.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps (B, C, H_l, W_l) and boxes (R_i, 4) of each image, xyxy pixels -> (R, C, height, width), image by image."""
        maps = [x[name] for name in x if name in self.featmap_names]
        plain = maps[0].device.type != "cpu" or self.sampling_ratio <= 0 or self.scales is None
        if plain or torchvision._is_tracing():
            return super().forward(x, boxes, image_shapes)
        dtype = torch.promote_types(maps[0].dtype, torch.float32)  # as torchvision's kernel does under autocast
        channels = maps[0].shape[1]
        table = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, channels) for level in maps]).to(dtype)
        levels = self.map_levels(boxes).clamp(0, len(maps) - 1)  # a box that is not a number has no level
        rois = torch.cat(boxes).to(dtype) * torch.tensor(self.scales, dtype=dtype)[levels][:, None]
        counts = torch.tensor([len(image_boxes) for image_boxes in boxes])
        image = torch.repeat_interleave(torch.arange(len(boxes)), counts)
        sizes = torch.tensor([level.shape[-2:] for level in maps])
        areas = sizes.prod(1)
        ends = (areas * len(maps[0])).cumsum(0)
        first = (ends - areas * len(maps[0]))[levels] + image * areas[levels]  # the row of the map's first place
        height, width = sizes[levels].unbind(1)
        left, top, right, bottom = rois.unbind(1)
        rows, row_weights = _samples(top, bottom, self.output_size[0], height, self.sampling_ratio)
        columns, column_weights = _samples(left, right, self.output_size[1], width, self.sampling_ratio)
        rows = first[:, None, None] + rows * width[:, None, None]
        places = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, height, width, down, across)
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        pooled = F.embedding_bag(
            places.flatten(3).flatten(0, 2), table, per_sample_weights=weights.flatten(3).flatten(0, 2), mode="sum"
        )
        return pooled.view(-1, *self.output_size, channels).permute(0, 3, 1, 2).to(maps[0].dtype)


def _samples(start: Tensor, end: Tensor, bins: int, length: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Where boxes from `start` to `end` (R,) meet a map of `length` (R,) places, along one side.

    Gives places (R, bins, 2 * ratio) and their weights: `ratio` samples a bin, each between two places, and their mean.
    """
    size = ((end - start).clamp(min=1) / bins)[:, None, None]
    bin_number = torch.arange(bins, dtype=start.dtype)[:, None]
    sample = torch.arange(ratio, dtype=start.dtype) + 0.5
    position = start[:, None, None] + bin_number * size + sample * size / ratio  # in the order of torchvision's rounding
    last = (length - 1)[:, None, None]
    inside = (position >= -1) & (position <= last + 1)  # not so where it is not a number
    position = torch.where(inside, position, 0).clamp(min=0).minimum(last.to(position.dtype))
    low = position.floor()
    part = position - low
    before = low.long()
    after = (before + 1).minimum(last)
    places, weights = torch.stack([before, after], -1), torch.stack([1 - part, part], -1) * inside[..., None] / ratio
    return places.flatten(2), weights.flatten(2)
