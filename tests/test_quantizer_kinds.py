"""What every quantizer says of its scales, keeps for the backward pass, and does under a compiler."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from nce_fx.quantizers import ACTIVATION_QUANTIZERS, WEIGHT_QUANTIZERS, ActivationQuantizer
from nce_fx.quantizers.saved_tensors import compact_saving


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", WEIGHT_QUANTIZERS)
def test_a_weight_quantizer_says_which_axis_has_scales_of_its_own_where_one_has(name):
    quantizer, weight = WEIGHT_QUANTIZERS[name](2, 1), draw(5, 4, 3)
    quantizer.start(weight)
    scales = quantizer.step_size(weight).numel()
    assert scales in (1, 4)
    assert quantizer.per_channel == (scales == 4)
    assert ("channel_axis=1" in repr(quantizer)) == (scales == 4)


def test_minmax_with_one_bit_has_the_ends_of_each_channel():
    weight = torch.tensor([[-1.0, 0.9, 3.0], [0.5, 2.4, 2.5], [-4.0, -1.0, -3.9]])
    wanted = torch.tensor([[-1.0, -1.0, 3.0], [0.5, 2.5, 2.5], [-4.0, -1.0, -4.0]])
    torch.testing.assert_close(WEIGHT_QUANTIZERS["minmax"](1)(weight), wanted)


@pytest.mark.parametrize("name", ACTIVATION_QUANTIZERS)
def test_levels_of_eight_unsigned_bits_are_kept_in_a_byte_as_they_are(name):
    x, found = 9 * draw(4, 300).abs(), []
    for kept in (False, True):
        given, quantizer = x.clone().requires_grad_(), ACTIVATION_QUANTIZERS[name](8, False)
        with compact_saving(activations=kept):
            y = torch.sin(quantizer(given))
        found.append(torch.autograd.grad(y.sum(), [given, *quantizer.parameters()], allow_unused=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", [name for name in WEIGHT_QUANTIZERS if name != "dorefa"])
def test_a_quantized_weight_lives_on_in_bytes_alone(name):
    quantizer, weight = WEIGHT_QUANTIZERS[name](2, 0), draw(6, 5, 1, 1).requires_grad_()
    quantizer.start(weight)
    with compact_saving():
        levels = quantizer(weight)
        memory = StorageWeakRef(levels.untyped_storage())
        x = draw(3, 5, 1, 1).requires_grad_()
        y = nn.functional.conv2d(x, levels)
    expected = levels.detach().sum(0).expand(3, 5, 1, 1).clone()
    del levels
    gc.collect()
    assert memory.expired()
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected)


@pytest.mark.parametrize("name", ACTIVATION_QUANTIZERS)
def test_a_compiler_takes_a_quantizer_in_one_piece(name):
    quantizer, x = ACTIVATION_QUANTIZERS[name](2), draw(2, 8)
    whole = torch.compile(quantizer, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(x), quantizer(x))


def test_a_quantizer_of_ones_own_that_leaves_out_its_range_is_told_so():
    class Half(ActivationQuantizer):
        def quantized(self, x: Tensor) -> Tensor:
            return x / 2

    quantizer = Half(2)
    quantizer.observe(draw(3))
    with pytest.raises(NotImplementedError):
        quantizer.settle()
