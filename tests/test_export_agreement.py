"""What a file that was changed after it was written is refused for, and what two right programs may differ by."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import nce_fx
from nce_fx.errors import ExportError
from nce_fx.export import export_onnx
from nce_fx.export.agreement import LEVELS, TOLERANCE, check_agreement, follow
from tests.test_export import random


class Far(nn.Module):
    """A sum so far from zero that its last digits are the output's first; in training there is none."""

    far: torch.Tensor

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("far", torch.tensor(1e4))

    def forward(self, x):
        x = self.last(self.first(x).relu())
        if self.training:
            return 2 * x
        return (x + self.far) - self.far


X = random(4, 6)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    gm = nce_fx.quantize(nce_fx.trace(Far().eval(), (X,)), None, [X])
    return gm, export_onnx(gm, tmp_path_factory.mktemp("far") / "model.onnx", format="int2", inputs=(X,))


def changed(written, name, change):
    """The file with other numbers in one of its tensors."""
    model = onnx.load(written.path)
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))
    return model


def test_a_file_of_the_same_numbers_has_nothing_on_a_border(written):
    agreement = written[1].agreement
    assert agreement.keys() == LEVELS.keys()
    assert all(each.difference <= TOLERANCE and each.on_border == 0 for each in agreement.values())


@pytest.mark.parametrize("exact", [True, False])
def test_another_number_behind_the_last_quantizer_is_refused_where_nothing_is_optimized(written, exact):
    model = changed(written[1], "last.bias", lambda bias: bias + 0.25)
    with pytest.raises(ExportError, match=r"outputs differ from PyTorch's by .* at optimization level 'disabled'"):
        check_agreement(written[0], model, model.SerializeToString(), (X,), exact_when_optimized=exact)


def test_either_program_may_round_sums_that_are_far_from_zero(written):
    """By as much as PyTorch's own lie from double precision; of the weights' and activations' levels, and of a mode."""
    model = changed(written[1], "far", lambda far: far * 2)
    difference, on_border = follow(written[0], model, (X,), "disabled")
    assert difference > 10 * TOLERANCE
    assert on_border == 0


def test_a_level_that_differs_in_its_last_bit_is_the_same_level(written):
    name = next(name for name, _ in written[0].named_modules() if name.endswith("activation_quant") and name[0] != "x")
    model = changed(written[1], f"{name}_scale", lambda scale: np.nextafter(scale, np.float32(9)))
    assert follow(written[0], model, (X,), "disabled")[1] == 0


def test_a_tensor_that_the_file_has_no_input_for_is_refused():
    class First(nn.Module):
        def forward(self, xs):
            return xs[0].relu()

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    gm, content = torch.fx.symbolic_trace(First()), model.SerializeToString()
    assert check_agreement(gm, model, content, ([X],))["all"].difference == 0
    with pytest.raises(ExportError, match="argument"):
        check_agreement(gm, model, content, ([X, X],))
