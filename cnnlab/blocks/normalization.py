"""Normalisation: over the batch, over groups of channels, over one image."""

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from cnnlab.blocks.facts import Facts, Shape, expect_channels, expect_image
from cnnlab.blocks.receptive_field import local, whole
from cnnlab.runtime.checks import integer, number
from cnnlab.runtime.errors import ArgumentError

# their weights scale what was normalised: they start at one, and are not decayed
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class BatchNorm(_BatchNorm):
    """Batch normalisation of (N, C), (N, C, L) or (N, C, H, W) per channel, so that one name serves everywhere.

    y = (x − mean) / √(var + eps) · weight + bias; biased variance in training, running averages in evaluation
    (arXiv 1502.03167). Raises `ArgumentError`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        if momentum is not None:
            number("momentum", momentum, 0, 1)
        super().__init__(
            integer("num_features", num_features, 1),
            number("eps", eps, 0, open_minimum=True),
            momentum,
            affine,
            track_running_stats,
        )

    def facts(self, shape: Shape) -> Facts:
        expect_channels("num_features", self.num_features, shape)
        return Facts(shape, field=local if self.track_running_stats else whole)  # in evaluation mode

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.dim() in (2, 3, 4), f"batch_norm takes 2 to 4 dimensions, received {input.dim()}"


class GroupNorm(nn.GroupNorm):
    """Normalises each of `num_groups` groups of channels of one image (arXiv 1803.08494); keeps the shape."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        if num_channels % integer("num_groups", num_groups, 1):
            raise ArgumentError(
                "num_groups",
                f"expected a divisor of the {num_channels} channels, received {num_groups}",
            )
        super().__init__(num_groups, num_channels, number("eps", eps, 0, open_minimum=True), affine)


class LayerNorm(nn.LayerNorm):
    """Normalises over the trailing dimensions `normalized_shape` (arXiv 1607.06450); keeps the shape.

    By default these are an image's channels, rows and columns, and the D features of each position of a sequence
    (N, L, D).
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__(
            normalized_shape,
            number("eps", eps, 0, open_minimum=True),
            elementwise_affine,
            bias,
        )


class LayerNorm2d(nn.LayerNorm):
    """Normalises over the channels of each pixel of (N, C, H, W), as in ConvNeXt (arXiv 2201.03545); keeps the shape.

    The weights of torchvision's `LayerNorm2d`; `eps` is ConvNeXt's. Raises `ArgumentError`.
    """

    def __init__(self, num_channels: int, eps: float = 1e-6, elementwise_affine: bool = True) -> None:
        super().__init__(
            integer("num_channels", num_channels, 1), number("eps", eps, 0, open_minimum=True), elementwise_affine
        )

    def facts(self, shape: Shape) -> Facts:
        expect_image(shape)
        expect_channels("num_channels", self.normalized_shape[0], shape)
        return Facts(shape, field=local)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        return F.layer_norm(x_NHWC, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)
