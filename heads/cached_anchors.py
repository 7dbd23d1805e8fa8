"""torchvision's anchors, made once for each shape of the batch."""

from collections import OrderedDict

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

Key = tuple[tuple[int, int], tuple[tuple[int, int], ...], torch.dtype, torch.device]


class CachedAnchorGenerator(AnchorGenerator):
    """Keeps the anchors of the last few batch shapes: making 268,000 of them takes longer than looking them up."""

    MOST = 32

    def __init__(self, sizes: tuple[tuple[int, ...], ...], aspect_ratios: tuple[tuple[float, ...], ...]) -> None:
        super().__init__(sizes, aspect_ratios)
        self._kept: OrderedDict[Key, list[Tensor]] = OrderedDict()

    def by_level(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Images (B, C, H, W) and their maps -> for each map its anchors (N_l, 4), xyxy pixels, float32 at least."""
        dtype = torch.promote_types(maps[0].dtype, torch.float32)  # bf16 cannot tell 257 from 258
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in maps)
        key = ((images.shape[-2], images.shape[-1]), sizes, dtype, images.device)
        if key not in self._kept:
            self.set_cell_anchors(dtype, images.device)
            strides = [[torch.tensor(key[0][0] // height), torch.tensor(key[0][1] // width)] for height, width in sizes]
            self._kept[key] = self.grid_anchors([list(size) for size in sizes], strides)
            if len(self._kept) > self.MOST:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """For each image the anchors of all maps (N, 4); the same tensor for all."""
        anchors = torch.cat(self.by_level(image_list.tensors, feature_maps))
        return [anchors] * len(image_list.image_sizes)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_kept": OrderedDict()}
