"""Small runs that the training tests share: four classes of 6x6 images, and a net that draws random numbers."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from nce_fx.processes import all_reduce_sum

one_process_a_gpu = pytest.mark.skipif(
    torch.cuda.device_count() == 1, reason="two processes on a machine with GPUs need two of them"
)


class Blobs:
    """Each class brightens its own quarter of a noisy image; the order is a function of seed and epoch."""

    name = "blobs"

    def __init__(self, train: int = 150, test: int = 101, workers: int = 0) -> None:
        self.workers = workers
        generator = torch.Generator().manual_seed(0)
        self.parts: dict[str, TensorDataset] = {}
        for split, size in (("train", train), ("test", test)):
            classes = torch.randint(0, 4, (size,), generator=generator)
            images = torch.randn(size, 1, 6, 6, generator=generator)
            for index, label in enumerate(classes.tolist()):
                row, column = 3 * (label // 2), 3 * (label % 2)
                images[index, :, row : row + 3, column : column + 3] += 1.5
            self.parts[split] = TensorDataset(images, classes)

    def to_double(self) -> None:
        self.parts = {k: TensorDataset(v.tensors[0].double(), v.tensors[1]) for k, v in self.parts.items()}

    def loader(self, split: str, *, batch_size: int, seed: int, epoch: int, shuffle: bool) -> DataLoader[Any]:
        dataset = self.parts[split]
        generator = torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(dataset), generator=generator) if shuffle else torch.arange(len(dataset))
        return DataLoader(dataset, batch_size, sampler=order.tolist(), num_workers=self.workers)


class InOrder:
    """A metric that keeps what it has seen: the sum of each target times its place in the split, from 1 on."""

    def reset(self) -> None:
        self.seen: list[int] = []

    def update(self, output: Tensor, target: Tensor) -> None:
        assert len(output) == len(target)
        self.seen += target.tolist()

    def compute(self) -> Tensor:
        return (torch.tensor(self.seen) * torch.arange(1, len(self.seen) + 1)).sum()


class Synchronizing(InOrder):
    """One that adds up by itself what processes saw, as torchmetrics' do."""

    sync_on_compute = True

    def compute(self) -> Tensor:
        return all_reduce_sum(torch.tensor(float(len(self.seen))))


class FunctionalNorm(nn.Module):
    """A BatchNorm that is not one of torch's modules, as in an exported graph."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Any:
        if self.training:
            return torch.ops.aten.batch_norm.default(
                x, self.scale, self.shift, self.mean, self.variance, True, 0.1, 1e-5, False
            )
        return F.batch_norm(x, self.mean, self.variance, self.scale, self.shift)


def net(seed: int = 0, dropout: float = 0.1, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            FunctionalNorm(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(32, 4),
        )


def same_state(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Whether two state_dicts are equal in every bit."""
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
