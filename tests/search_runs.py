"""A small search that several tests run, also as a program: ``python -m tests.search_runs DIR``, or under torchrun."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

import nce_fx
from nce_fx.data.loaders import BatchDataset, Data
from nce_fx.search import SearchRecipe, SearchResult, search


class Images(BatchDataset):
    """Noise with a bright quarter that says the class."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.y = torch.randint(0, 4, (count,), generator=generator)
        self.x = torch.randn(count, 1, 6, 6, generator=generator)
        for k, label in enumerate(self.y.tolist()):
            self.x[k, :, 3 * (label // 2) : 3 * (label // 2) + 3, 3 * (label % 2) : 3 * (label % 2) + 3] += 1.0

    def __len__(self) -> int:
        return len(self.y)

    def __getitems__(self, indices):
        return self.x[indices], self.y[indices]


def quarters(train: int = 96) -> Data:
    return Data("quarters", Images(train, 0), Images(32, 1), (1, 6, 6), 4)


class Residual(nn.Module):
    """Convolutions with BatchNorm, a residual addition, a grouped and a concatenated one, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.deep, self.deep_norm = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.back, self.back_norm = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.side = nn.Conv2d(4, 3, 1)
        self.mixed_norm = nn.BatchNorm2d(7)
        self.last = nn.Conv2d(7, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        y = self.inner_norm(self.inner(x)).relu()
        y = self.deep_norm(self.deep(y)).relu()
        x = (x + self.back_norm(self.back(y))).relu()
        x = torch.cat([x, self.side(x)], 1)
        x = self.last(self.mixed_norm(x).sigmoid()).relu()
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def traced(dtype: torch.dtype = torch.float32) -> GraphModule:
    torch.manual_seed(0)
    model = Residual()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert value is not None
                value.uniform_(0.5, 1.5)
    return nce_fx.trace(model.to(dtype).eval(), (torch.randn(1, 1, 6, 6, dtype=dtype),))


def free(gm: GraphModule) -> dict[str, int]:
    return {group.id: group.width for group in nce_fx.analyze_channels(gm) if group.pinned is None}


EXPANDING = SearchRecipe(epochs=5, warmup_epochs=1, batch_size=8, threshold=0.2, ratios=(0.5, 0.75, 1.0), seed=3)
BUDGET = nce_fx.Budget(macs=1.5, params=1.5)


def run(directory: Path, spec: nce_fx.QuantSpec | None) -> SearchResult[Any]:
    """Search with a checkpoint after every step."""
    return search(traced(), quarters(), EXPANDING, budget=BUDGET, spec=spec, directory=directory, checkpoint_seconds=0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), nce_fx.QuantSpec())
