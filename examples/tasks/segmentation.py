"""Segmentation: a class for each pixel, trained by cross entropy, measured by the mean overlap of the classes.

python examples/tasks/segmentation.py
nce-fx rewrite examples/tasks/segmentation.py:Net --data examples/tasks/segmentation.py:data --retrain 2 \
    --metric mean_iou
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import nce_fx
from nce_fx.data import load_data
from nce_fx.training import Recipe, train


class Net(nn.Module):
    """A small U: down, up, and the two joined. It gives a dict, as torchvision's segmentation models do."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.down = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16))
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.join = nn.Sequential(nn.Conv2d(24, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.out = nn.Conv2d(8, classes, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return scores of the size of the image."""
        near = self.first(image).relu()
        far = self.deep(self.down(near).relu()).relu()
        far = F.interpolate(far, size=image.shape[-2:], mode="nearest")
        return {"out": self.out(self.join(torch.cat([near, far], 1)).relu())}


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return images of a square and a disc, and the class of each pixel; the border of the image is left out."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    images, masks = 0.2 * torch.randn(160, 1, 24, 24, generator=generator), torch.zeros(160, 24, 24, dtype=torch.long)
    places = torch.randint(5, 19, (160, 4), generator=generator)
    for image, mask, (y, x, v, u) in zip(images, masks, places.tolist(), strict=True):
        mask[((rows - y).abs() < 4) & ((columns - x).abs() < 4)] = 1
        mask[(rows - v) ** 2 + (columns - u) ** 2 < 16] = 2
        image += mask
    masks[:, 0], masks[:, -1] = -100, -100
    return TensorDataset(images[:128], masks[:128]), TensorDataset(images[128:], masks[128:])


def main(epochs: int = 4) -> None:
    """Train in float, rewrite at 2 bits, train again, and print the overlaps."""
    torch.manual_seed(0)
    shapes, recipe = load_data(f"{__file__}:data"), Recipe(epochs=epochs, batch_size=16, learning_rate=0.1)
    trained = train(Net(), shapes, recipe, metric="mean_iou")
    result = nce_fx.rewrite(trained.model.eval(), (torch.zeros(1, 1, 24, 24),), batches=shapes.batches(4, 16))
    again = train(result.graph_module, shapes, recipe, metric="mean_iou", teacher=result.original)
    print(f"{trained.metric}: float {trained.score:.2%}, 2 bits {again.score:.2%}")


if __name__ == "__main__":
    main()
