"""The built-in networks: one architecture a file, one table of them.

Every builder takes ``num_classes`` and ``in_channels``; the small ResNets also ``width``. A new one is a file beside
these and a line in each table.
"""

from collections.abc import Callable, Mapping

from torch import nn

from nce_fx.models.mobilenet_v2 import mobilenet_v2
from nce_fx.models.resnet import resnet18, resnet50
from nce_fx.models.resnet_cifar import resnet8, resnet20, resnet56
from nce_fx.models.vgg import vgg16_bn
from nce_fx.registry import Registry

MODELS: Registry[Callable[..., nn.Module]] = Registry(
    "models",
    {
        "resnet8": resnet8,
        "resnet20": resnet20,
        "resnet56": resnet56,
        "resnet18": resnet18,
        "resnet50": resnet50,
        "mobilenet_v2": mobilenet_v2,
        "vgg16_bn": vgg16_bn,
    },
    callable,
)
"""Name -> builder; those of installed packages among them, see `nce_fx.registry`."""

_SMALL, _LARGE = (3, 32, 32), (3, 224, 224)
INPUT_SHAPES: Mapping[str, tuple[int, int, int]] = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet56"), _SMALL),
    **dict.fromkeys(("resnet18", "resnet50", "mobilenet_v2", "vgg16_bn"), _LARGE),
}
"""Name -> (channels, height, width) of one image with the builder's default arguments, of those that are built in."""

__all__ = ["INPUT_SHAPES", "MODELS"]
