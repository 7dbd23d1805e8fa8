"""Box offsets to boxes, exact in mixed precision, too."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder


class BoxCoder(TorchvisionBoxCoder):
    """torchvision's coder, which decodes in float32 whatever the offsets' type.

    torchvision's gives boxes of that type: in bf16, of eight bits, positions near 1,000 pixels would be rounded to 4 or 8.
    """

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Offsets (N, 4 K) and boxes (N, 4) xyxy pixels -> boxes (N, 4 K) float32, or float64 where either is."""
        wide = torch.promote_types(torch.promote_types(rel_codes.dtype, boxes.dtype), torch.float32)
        return super().decode_single(rel_codes.to(wide), boxes.to(wide))
