"""BatchNorm over several processes: with one process it is PyTorch's own, and each way asks the others once."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.steps.processes import with_whole_batch
from nce_fx.training.batch_norm import sync_batch_norm

Norm = Callable[..., Tensor]


@pytest.fixture(scope="module", autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one process."""
    meeting = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def run(norm: Norm, shape: tuple[int, ...], kind: torch.dtype, mean: float) -> list[Tensor]:
    """The result, the gradients, and the running statistics."""
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=kind) + mean).requires_grad_()
    weight, bias = (torch.rand(shape[1], dtype=kind).requires_grad_() for _ in range(2))
    running = torch.zeros(shape[1], dtype=kind), torch.ones(shape[1], dtype=kind)
    y = norm(x, *running, weight, bias)
    y.backward(torch.randn(shape, dtype=kind))
    found = [y.detach(), x.grad, weight.grad, bias.grad, *running]
    return [each for each in found if each is not None]


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 7), (6, 5, 4, 3), (6, 5, 2, 3, 2)])
@pytest.mark.parametrize(("kind", "mean"), [(torch.float64, 3.0), (torch.float32, 0.0), (torch.float32, 100.0)])
def test_one_process_alone_gets_what_pytorch_computes(shape, kind, mean):
    def plain(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, weight, bias, True)

    # A mean of a hundred deviations takes two digits: squares would take four.
    tolerance = 1e-12 if kind == torch.float64 else 2e-6 * max(1.0, mean)
    for found, expected in zip(run(sync_batch_norm, shape, kind, mean), run(plain, shape, kind, mean), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_each_way_asks_the_others_once(monkeypatch):
    asked: list[str] = []
    for name in ("all_reduce", "all_gather", "all_gather_single", "broadcast", "all_gather_into_tensor"):
        real = getattr(dist, name)

        def counted(*args: Any, _real: Any = real, _name: str = name, **options: Any) -> Any:
            asked.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(dist, name, counted)
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    y = sync_batch_norm(x, torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3))
    assert asked == ["all_gather_single"]
    y.sum().backward()
    assert asked == ["all_gather_single", "all_reduce"]


def test_what_the_benchmark_stands_beside_is_the_same_network():
    torch.manual_seed(0)
    plain, textbook = nn.BatchNorm2d(5).double(), nn.BatchNorm2d(5).double()
    x = torch.randn(6, 5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(with_whole_batch(textbook)(x), plain(x))
    torch.testing.assert_close(textbook.running_var, plain.running_var)
    torch.testing.assert_close(textbook.running_mean, plain.running_mean)
