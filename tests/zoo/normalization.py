"""Normalizations: per channel they follow, over channels they want whole groups or whole axes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from tests.zoo.model import Head, ZooModel, conv, image, noise, together


class Normalized(nn.Module):
    """A convolution, a normalization of its six channels, a residual branch beside."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.c, self.head = conv(3, 6), norm(), conv(6, 4), conv(4, 6), Head(6)

    def forward(self, x):
        x = self.norm(self.a(x))
        return self.head(x + self.c(F.relu(self.b(F.relu(x)))))


class ChannelsFirstNorm(nn.Module):
    """ConvNeXt's own: mean and variance over axis 1, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(6)), nn.Parameter(torch.zeros(6))

    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ResponseNorm(nn.Module):
    """ConvNeXt v2's global response normalization: norms over space divided by their mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(1, 6, 1, 1)), nn.Parameter(torch.zeros(1, 6, 1, 1))

    def forward(self, x):
        size = torch.norm(x, p=2, dim=(2, 3), keepdim=True)
        return self.gamma * (x * (size / (size.mean(1, keepdim=True) + 1e-6))) + self.beta + x


class FrozenBatchNorm(nn.Module):
    """Statistics and affine terms as buffers, as in detection backbones."""

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(6))

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class RootMeanSquare(nn.Module):
    """The norm of language models, written out, over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Tokens(nn.Module):
    """A perceptron on tokens behind a norm of their width, residual."""

    def __init__(self, norm: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed, self.norm, self.up, self.down, self.out = (
            nn.Linear(5, 6),
            norm(6),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 3),
        )

    def forward(self, x):
        x = self.embed(x)
        return self.out(F.relu(x + self.down(F.gelu(self.up(self.norm(x))))))


class SpatialLayerNorm(nn.Module):
    """A LayerNorm over channels and space together, its parameters [C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = conv(3, 4), nn.LayerNorm((4, 8, 8)), conv(4, 5), Head(5)

    def forward(self, x):
        return self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))))


class NormalizedVector(nn.Module):
    """An embedding of length one: a sum over channels that copies change by a factor, which the graph then makes up."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.embed, self.out = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.out(F.normalize(self.embed(F.relu(self.a(x))), dim=1))


class GroupNormAfterConcat(nn.Module):
    """The groups of the norm do not line up with the sources of the concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.c, self.head = conv(3, 2), conv(3, 6), nn.GroupNorm(2, 8), conv(8, 5), Head(5)

    def forward(self, x):
        x = self.norm(torch.cat([self.a(x), self.b(x)], 1))
        return self.head(F.relu(self.c(F.relu(x))))


class ComputedWeight(nn.Module):
    """A convolution whose weight is parametrized, where torch.export alone can follow: a loop over a tensor."""

    def __init__(self, parametrized: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = conv(3, 6), parametrized(conv(6, 8)), conv(8, 6), Head(6)

    def forward(self, x):
        x = self.c(F.relu(self.b(F.relu(self.a(x)))))
        for each in x.unsqueeze(0):
            x = each
        return self.head(x)


class Standardized(nn.Module):
    """A weight whose filters have mean 0 and variance 1."""

    def forward(self, weight):
        return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()


def _standardized(module: nn.Module) -> nn.Module:
    parametrize.register_parametrization(module, "weight", Standardized())
    return module


class NormedByInput(nn.Module):
    """A weight whose norm is taken of what each input gives, and one that is computed in a way nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), weight_norm(nn.Linear(6, 5), dim=1), nn.Linear(5, 4)
        self.d, self.e, self.out = nn.Linear(4, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        x = F.linear(x, torch.linalg.matrix_exp(self.d.weight), self.d.bias)
        return self.out(F.relu(self.e(F.relu(x))))


class ByProducts(nn.Module):
    """A layer whose weight is computed by products before each call, or that looks at values, so that none enters."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.out = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)
        self.middle = build()

    def forward(self, x):
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.out(F.relu(self.middle(x)))


class Deciding(nn.Module):
    """A block that looks at values: it is left whole."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer, self.gate = nn.Linear(width, width), nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = self.layer(x) * self.gate
        return 2 * y if float(y.detach().abs().amax()) > 0 else y


def _by_products(build: Callable[[], nn.Module], pinned: str = "a weight that the graph computes") -> ZooModel:
    return ZooModel(lambda: ByProducts(build), (noise(2, 4),), ("a", "b"), {"c": pinned})


def _computed_weight(
    parametrized: Callable[[nn.Module], nn.Module], free: tuple[str, ...], pinned: dict[str, str]
) -> ZooModel:
    return ZooModel(lambda: ComputedWeight(parametrized), (image(),), free, pinned)


def _image_norm(norm: Callable[[], nn.Module]) -> ZooModel:
    return ZooModel(lambda: Normalized(norm), (image(),), ("a", "b", "c"), together=together("a", "c"))


def _token_norm(norm: Callable[[int], nn.Module]) -> ZooModel:
    return ZooModel(
        lambda: Tokens(norm), (noise(2, 7, 5),), ("embed", "up", "down"), together=together("embed", "down")
    )


class UnitLength(nn.Module):
    """A norm of diffusion models: channels made one long together, times a root of their number; its square too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b, self.head = conv(3, 6), nn.Parameter(torch.ones(1, 6, 1, 1)), conv(6, 4), Head(4)

    def forward(self, x):
        x = F.normalize(self.a(x), dim=1) * self.scale * 6**0.5
        x = self.b(F.relu(x))
        return self.head(x / (x.norm(dim=1, keepdim=True) + torch.linalg.vector_norm(x, dim=1, keepdim=True) + 0.1))


MODELS = {
    "unit_length": ZooModel(UnitLength, (image(),), ("a", "b")),
    "batch_norm": _image_norm(lambda: nn.BatchNorm2d(6)),
    "batch_norm_without_statistics": _image_norm(lambda: nn.BatchNorm2d(6, track_running_stats=False)),
    "frozen_batch_norm": _image_norm(FrozenBatchNorm),
    "group_norm": _image_norm(lambda: nn.GroupNorm(3, 6)),
    "group_norm_of_one_group": _image_norm(lambda: nn.GroupNorm(1, 6)),
    "group_norm_of_one_channel": _image_norm(lambda: nn.GroupNorm(6, 6)),
    "group_norm_after_concat": ZooModel(GroupNormAfterConcat, (image(),), ("c",)),
    "instance_norm": _image_norm(lambda: nn.InstanceNorm2d(6, affine=True)),
    "instance_norm_with_statistics": _image_norm(lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True)),
    "channels_first_norm": _image_norm(ChannelsFirstNorm),
    "response_norm": _image_norm(ResponseNorm),
    "exported_weight_norm": _computed_weight(weight_norm, ("a", "b", "c"), {}),
    "exported_weight_norm_of_all": _computed_weight(lambda module: weight_norm(module, dim=-1), ("a", "b", "c"), {}),
    "exported_weight_norm_of_kernels": _computed_weight(lambda module: weight_norm(module, dim=2), ("a", "b", "c"), {}),
    "exported_weight_norm_transposed": ZooModel(
        lambda: ComputedWeight(lambda conv: weight_norm(nn.ConvTranspose2d(6, 8, 2, 2))), (image(),), ("a", "b", "c")
    ),
    "exported_weight_norm_of_groups": ZooModel(
        lambda: ComputedWeight(lambda conv: weight_norm(nn.Conv2d(6, 8, 3, groups=2), dim=2)),
        (image(),),
        ("a", "b", "c"),
    ),
    "weight_norm_of_inputs": ZooModel(
        NormedByInput,
        (noise(2, 4),),
        ("a", "b", "e"),
        {"c": "a weight that the graph computes", "d": "linalg_matrix_exp has no channel rule"},
    ),
    "exported_spectral_norm": _computed_weight(
        spectral_norm, ("c",), {"a": "a weight that the graph computes", "b": "folded into one"}
    ),
    "spectral_norm": _by_products(lambda: spectral_norm(nn.Linear(6, 6))),
    "older_spectral_norm": _by_products(lambda: torch.nn.utils.spectral_norm(nn.Linear(6, 6))),
    "orthogonal": _by_products(lambda: orthogonal(nn.Linear(6, 6))),
    "householder": _by_products(lambda: orthogonal(nn.Linear(6, 6), orthogonal_map="householder")),
    "left_whole": _by_products(lambda: Deciding(6), "middle"),
    "exported_standardized_weight": _computed_weight(_standardized, ("a", "b", "c"), {}),
    "layer_norm": _token_norm(nn.LayerNorm),
    "rms_norm": _token_norm(nn.RMSNorm),
    "rms_norm_written_out": _token_norm(RootMeanSquare),
    "layer_norm_over_space": ZooModel(SpatialLayerNorm, (image(),), ("a", "b")),
    "normalized_vector": ZooModel(NormalizedVector, (noise(2, 4),), ("a", "embed")),
    "local_response_norm": ZooModel(
        lambda: Normalized(lambda: nn.LocalResponseNorm(3)), (image(),), ("b",), {"a": "norm", "c": "norm"}
    ),
}
