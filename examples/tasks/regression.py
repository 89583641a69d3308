"""Regression: a number of each image, trained by mean squared error.

python examples/tasks/regression.py
nce-fx rewrite examples/tasks/regression.py:model --data examples/tasks/regression.py:data --retrain 2 \
    --loss mean_squared_error
"""

import torch
from torch import nn
from torch.utils.data import TensorDataset

import nce_fx
from nce_fx.data import load_data
from nce_fx.training import Recipe, train


def model() -> nn.Module:
    """Return a network that gives one number an image."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 1),
    )


def data() -> tuple[TensorDataset, TensorDataset]:
    """Return images of a bright square each, and how many pixels it has, in hundreds."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(2, 13, (320,), generator=generator)
    images = 0.1 * torch.randn(320, 1, 16, 16, generator=generator)
    for image, side in zip(images, sides.tolist(), strict=True):
        image[:, 2 : 2 + side, 2 : 2 + side] += 1
    areas = sides[:, None].float() ** 2 / 100
    return TensorDataset(images[:256], areas[:256]), TensorDataset(images[256:], areas[256:])


def main(epochs: int = 6) -> None:
    """Train in float, rewrite at 2 bits, train again, and print the squared errors."""
    torch.manual_seed(0)
    areas, recipe = load_data(f"{__file__}:data"), Recipe(epochs=epochs, batch_size=32, learning_rate=0.05)
    trained = train(model(), areas, recipe, loss="mean_squared_error")
    example = (torch.zeros(1, 1, 16, 16),)
    result = nce_fx.rewrite(trained.model.eval(), example, batches=areas.batches(4, 32), loss="mean_squared_error")
    again = train(result.graph_module, areas, recipe, loss="mean_squared_error", teacher=result.original)
    print(f"{trained.metric}: float {trained.score:.4f}, 2 bits {again.score:.4f}")


if __name__ == "__main__":
    main()
