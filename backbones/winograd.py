"""3x3 convolution with a fraction of the multiplications, for inference on CPUs.

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, https://arxiv.org/abs/1509.09308: F(4x4, 3x3) gives
16 outputs for 36 multiplications a channel, in place of 144. Where the processor's convolution is a direct one, as oneDNN's is,
this is faster; docs/performance.md has figures. Rounding errors are some 30 times those of a direct convolution, about 1e-5 of
the largest output.
"""

import torch
from torch import Tensor, nn

# The matrices for the points 0, 1, -1, 2, -2 and infinity: B is for tiles of the input, G for the kernel, A for the output.
_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
OUT, TILE = 4, 6  # sides of a tile: OUT x OUT outputs are made of TILE x TILE inputs
# Rows of tiles go through together; so many bytes of transformed input stay in the processor's cache.
CACHE_BYTES = 3_000_000
# Below, what the transforms cost is not won back; above, maps are small, and the kernel, four times the memory, is large.
LEAST_CHANNELS, MOST_CHANNELS = 128, 256


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1 in float32, for inference alone; its output lies channels last."""

    kernel: Tensor
    input_transform: Tensor
    output_transform: Tensor
    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d) -> None:
        """Take the weights of a convolution that `is_suitable`."""
        super().__init__()
        assert is_suitable(convolution)
        kernel = convolution.weight.detach()
        g = torch.tensor(_G, dtype=torch.float64, device=kernel.device)
        transformed = kernel.new_empty(TILE, TILE, kernel.shape[1], kernel.shape[0])
        for target, part in zip(transformed.split(64, dim=3), kernel.split(64), strict=True):  # in parts, for float64 is large
            target.copy_((g @ part.double() @ g.T).permute(2, 3, 1, 0))
        a, b = torch.tensor(_A, dtype=torch.float32), torch.tensor(_B, dtype=torch.float32)
        self.register_buffer("kernel", transformed.flatten(0, 1))
        self.register_buffer("input_transform", torch.kron(b, b).to(kernel.device))
        self.register_buffer("output_transform", torch.kron(a, a).to(kernel.device))
        self.register_buffer("bias", None if convolution.bias is None else convolution.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 -> (B, O, H, W)."""
        batch, channels, height, width = x.shape
        out_channels = self.kernel.shape[2]
        down, across = -(-height // OUT), -(-width // OUT)
        x = x.permute(0, 2, 3, 1)
        output = x.new_empty(batch, down * OUT, across * OUT, out_channels)
        row_bytes = 4 * TILE * TILE * across * max(channels, out_channels)
        rows = min(down, max(1, CACHE_BYTES // row_bytes))
        together = min(batch, max(1, CACHE_BYTES // (row_bytes * down)))  # small images, such as RoIs, are taken many at a time
        size = TILE * TILE * together * rows * across
        gathered, transformed = x.new_empty(size * channels), x.new_empty(size * channels)
        products = x.new_empty(size * out_channels)
        tiles_out = x.new_empty(OUT * OUT * together * rows * across * out_channels)
        padded = x.new_zeros(together, rows * OUT + 2, across * OUT + 2, channels)
        for images, targets in zip(x.split(together), output.split(together), strict=True):
            for row in range(0, down, rows):
                count = min(rows, down - row)
                rows_in = padded[: len(images), : count * OUT + 2]
                _copy_rows(images, row * OUT - 1, rows_in)
                shape = (len(images), count, across)
                tiles = len(images) * count * across
                size = TILE * TILE * tiles
                patches = rows_in.unfold(1, TILE, OUT).unfold(2, TILE, OUT)
                taken = gathered[: size * channels].view(TILE, TILE, *shape, channels)
                taken.copy_(patches.permute(4, 5, 0, 1, 2, 3))
                inputs = transformed[: size * channels].view(TILE * TILE, -1)
                torch.mm(self.input_transform, taken.view(TILE * TILE, -1), out=inputs)
                product = products[: size * out_channels].view(TILE * TILE, tiles, out_channels)
                torch.bmm(inputs.view(TILE * TILE, tiles, channels), self.kernel, out=product)
                done = tiles_out[: OUT * OUT * tiles * out_channels].view(OUT * OUT, -1)
                torch.mm(self.output_transform, product.view(TILE * TILE, -1), out=done)
                done = done.view(OUT, OUT, *shape, out_channels).permute(2, 3, 0, 4, 1, 5)
                place = targets[:, row * OUT : (row + count) * OUT].view(len(images), count, OUT, across, OUT, out_channels)
                if self.bias is None:
                    place.copy_(done)
                else:
                    torch.add(done, self.bias, out=place)
        return output[:, :height, :width].permute(0, 3, 1, 2)

    def extra_repr(self) -> str:
        """Channels in and out."""
        return f"{self.kernel.shape[1]}, {self.kernel.shape[2]}, kernel_size=(3, 3)"


def _copy_rows(images: Tensor, first: int, target: Tensor) -> None:
    """Fill `target` (B, R, W + 2 or more, C) with the rows of images (B, H, W, C) from `first` on, zero where there are none.

    The columns around them are zero already.
    """
    begin, end = max(first, 0), min(first + target.shape[1], images.shape[1])
    target[:, : begin - first] = 0
    target[:, begin - first : end - first, 1 : images.shape[2] + 1] = images[:, begin:end]
    target[:, end - first :] = 0


def is_suitable(convolution: nn.Conv2d) -> bool:
    """Whether a convolution is one that `WinogradConv2d` computes, and faster."""
    return (
        type(convolution) is nn.Conv2d
        and convolution.kernel_size == (3, 3)
        and convolution.stride == convolution.dilation == (1, 1)
        and convolution.padding in ((1, 1), "same", 1)
        and convolution.padding_mode == "zeros"
        and convolution.groups == 1
        and convolution.weight.dtype == torch.float32
        and min(convolution.in_channels, convolution.out_channels) >= LEAST_CHANNELS
        and max(convolution.in_channels, convolution.out_channels) <= MOST_CHANNELS
    )
