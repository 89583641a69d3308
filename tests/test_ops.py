"""One operation, however it is written: between two layers, every spelling has the same channels, cost and sign."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

import nce_fx
from nce_fx.errors import InputError
from nce_fx.ops import OPS, Absent, Op
from nce_fx.ops.layers import find_layers
from nce_fx.ops.liveness import overwritten
from nce_fx.ops.sign import never_negative
from nce_fx.ops.spellings import in_place
from nce_fx.ops.table import argument_names
from nce_fx.passes.analysis.channels import analysis_of
from tests.drawing import keep, traced
from tests.goldens import KEPT, MEANT, line
from tests.laws import cost_is_exact, narrowing_is_removal, widening_keeps_the_function
from tests.zoo.model import noise, randomize

WIDTH = 8
MODULES: dict[str, Any] = {
    **{f"Conv{n}d": lambda kind: kind(WIDTH, 6, 3, padding=1) for n in (1, 2, 3)},
    **{f"ConvTranspose{n}d": lambda kind: kind(WIDTH, 6, 3, stride=2) for n in (1, 2, 3)},
    **dict.fromkeys(("Linear", "LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"), lambda kind: kind(WIDTH, 6)),
    "Bilinear": lambda kind: kind(WIDTH, WIDTH, 6),
    **{f"BatchNorm{n}d": lambda kind: kind(WIDTH) for n in (1, 2, 3)},
    "SyncBatchNorm": lambda kind: kind(WIDTH),
    **{f"InstanceNorm{n}d": lambda kind: kind(WIDTH, affine=True) for n in (1, 2, 3)},
    **dict.fromkeys(("LayerNorm", "RMSNorm", "PReLU"), lambda kind: kind(WIDTH)),
    "GroupNorm": lambda kind: kind(4, WIDTH),
    "LocalResponseNorm": lambda kind: kind(3),
    "MultiheadAttention": lambda kind: kind(WIDTH, 2),
    "Embedding": lambda kind: kind(5, WIDTH),
    "EmbeddingBag": lambda kind: kind(5, WIDTH),
    **dict.fromkeys(("Softmax", "LogSoftmax"), lambda kind: kind(2)),
    "Upsample": lambda kind: kind(scale_factor=2),
    **dict.fromkeys(("UpsamplingNearest2d", "UpsamplingBilinear2d"), lambda kind: kind(scale_factor=2)),
    "GLU": lambda kind: kind(1),
    "Fold": lambda kind: kind((4, 4), 2, stride=2),
    "Unfold": lambda kind: kind(2, stride=2),
    "Flatten": lambda kind: kind(2),
    "Unflatten": lambda kind: kind(2, (2, 2)),
}
"""How a module of each type is built that does what its row's example does."""


def example_of(op: Op) -> tuple[Any, ...]:
    assert not isinstance(op.example, Absent)
    return op.example()


MORE: dict[str, tuple[Any, ...]] = {
    f"conv{n}d": (*example_of(OPS[f"conv{n}d"])[:3], [1] * n, "same") for n in (1, 2, 3)
}
"""Other examples, for spellings that take no other."""


@dataclass(frozen=True)
class Held:
    """A tensor among the arguments: the one that the layer before makes, or one that the model holds."""

    parameter: str = ""
    buffer: str = ""

    def of(self, model: Any, x: Any) -> Any:
        if self.parameter:
            return model.held[self.parameter]
        return getattr(model, self.buffer) if self.buffer else x


class Between(nn.Module):
    """An operation between a layer that makes the channels of its first argument and one that reads what it makes."""

    def __init__(self, call: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], buffers: Any = ()) -> None:
        super().__init__()
        self.statistics = [id(each) for each in buffers]
        leaves, self.structure = tree_flatten((arguments, keywords))
        self.call, self.held = call, nn.ParameterDict()
        if isinstance(call, nn.Module):
            self.operation = call
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        wide = [each for each in tensors if each.is_floating_point() and WIDTH in each.shape]
        self.x = next((each for each in tensors if each.dtype == torch.int64 and each.dim() > 1), (wide or tensors)[0])
        self.leaves = [self._kept(index, leaf) for index, leaf in enumerate(leaves)]
        makes = self.x.is_floating_point()
        self.as_image = makes and self.x.dim() > 2 and self.x.shape[1] == WIDTH
        if self.as_image:
            self.before: nn.Module = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.x.dim() - 3](4, WIDTH, 1)
        else:
            self.before = nn.Linear(4, WIDTH) if makes else nn.Identity()
        self.after: nn.Module = nn.Identity()
        self.picks, self.flat = 0, False
        with torch.no_grad():
            while isinstance(self.result(*self.inputs()), tuple | list):
                self.picks += 1
            self.flat = self.as_image and self.result(*self.inputs()).dim() > 2
            self.after = nn.Linear(self(*self.inputs()).shape[-1], 3)

    def _kept(self, index: int, leaf: Any) -> Any:
        """Hold a tensor that is not the first as a parameter, those of a joined list apart: say where it is."""
        joined = isinstance(leaf, torch.Tensor) and leaf.shape == self.x.shape and not self.structure_is_flat()
        if not isinstance(leaf, torch.Tensor) or leaf is self.x or joined or isinstance(self.call, nn.Module):
            return Held() if isinstance(leaf, torch.Tensor) else leaf
        if leaf.is_floating_point() and id(leaf) not in self.statistics:
            self.held[f"p{index}"] = nn.Parameter(leaf.clone())
            return Held(parameter=f"p{index}")
        self.register_buffer(f"b{index}", leaf)
        return Held(buffer=f"b{index}")

    def structure_is_flat(self) -> bool:
        return "list" not in str(self.structure)

    def inputs(self) -> tuple[torch.Tensor, ...]:
        if not self.x.is_floating_point():
            return (self.x,)
        shape = list(self.x.shape)
        shape[1 if self.as_image else -1] = 4
        return (noise(*shape),)

    def forward(self, x):
        y = self.result(x)
        return self.after(y.flatten(2).mean(2) if self.flat else y)

    def result(self, x: Any) -> Any:
        x = self.before(x)
        leaves = [leaf.of(self, x) if isinstance(leaf, Held) else leaf for leaf in self.leaves]
        arguments, keywords = tree_unflatten(leaves, self.structure)
        if isinstance(self.call, nn.Module):
            y = self.operation(*arguments)
        elif isinstance(self.call, str):
            y = getattr(arguments[0], self.call)(*arguments[1:], **keywords)
        else:
            y = self.call(*arguments, **keywords)
        for _ in range(self.picks):
            y = y[0]
        return y


def in_order(op: Op, spelling: Any, example: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the example's arguments in the order of a spelling."""
    order = OPS.signatures[spelling]
    if order == op.signature:
        return example
    known = dict(zip(argument_names(op.signature), example, strict=False))
    parts = [part.partition("=") for part in order.split(", ")]
    return tuple(known[name] if name in known else ast.literal_eval(default) for name, _, default in parts)


def between(op: Op, spelling: Any) -> Between | None:
    """Return the model of a spelling; ``None`` where no example fits it (an overload for other arguments)."""
    if isinstance(spelling, type):
        build = MODULES.get(spelling.__name__, lambda kind: kind())
        try:
            module = build(spelling)
        except TypeError:
            module = spelling(2)
        given = {nn.MultiheadAttention: 3, nn.Bilinear: 2}.get(spelling, 1)
        for x in (example_of(op)[0], *(noise(2, WIDTH, *[4] * n) for n in range(4))):
            try:
                return Between(module.eval(), (x,) * given, {})
            except (ValueError, RuntimeError):
                continue
        return None
    for example in (example_of(op), *([MORE[op.name]] if op.name in MORE else [])):
        try:
            names = argument_names(op.signature)
            statistics = [v for name, v in zip(names, example, strict=False) if name.startswith("running_")]
            model = Between(spelling, in_order(op, spelling, example), {}, statistics)
        except Exception:
            continue
        # A parameter that is overwritten would be another one at the next call.
        first = next(leaf for leaf in model.leaves if isinstance(leaf, Held))
        return None if in_place(spelling) and first != Held() else model
    return None


def _name(spelling: Any) -> str:
    if isinstance(spelling, type | str):
        return str(getattr(spelling, "__name__", repr(spelling)))
    if isinstance(spelling, torch._ops.OpOverload):
        return str(spelling)
    return f"{getattr(spelling, '__module__', '') or 'torch'}.{getattr(spelling, '__qualname__', spelling)}"


def _traced(spelling: Any) -> bool:
    """Whether a graph can have a spelling: a method is called by its name, and other libraries are not here."""
    descriptor = inspect.ismethoddescriptor(spelling) and not isinstance(spelling, torch._ops.OpOverload)
    return not descriptor and not (isinstance(spelling, str) and "." in spelling)


NOT_CALLED = {
    **dict.fromkeys(("size", "item", "any", "all", "argmax", "argmin"), "makes no numbers that a layer reads"),
    **dict.fromkeys(("empty_like", "new_empty"), "holds whatever was in memory"),
    "bernoulli": "takes probabilities alone",
    **dict.fromkeys(("rand_like", "randn_like", "uniform", "exponential"), "is another one at every call"),
    "stochastic_depth": "is torchvision's",
    "Tensor.expand": "a method is called by its name",
    "_assert_tensor_metadata": "is not called by people",
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), "reads places that a pooling made"),
    "affine_grid_generator": "makes places of matrices",
    "rrelu_with_noise": "is what rrelu calls",
    "_weight_norm_interface": "is of parameters alone",
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c", "complex", "polar", "conj"), "makes complex numbers"),
    **dict.fromkeys(("view_as_real", "view_as_complex", "angle"), "is of complex numbers"),
}
"""Rows whose example stands between no layers, and why."""

SPELLINGS = {
    f"{op.name}: {_name(s)}": (op.name, s)
    for s, op in OPS.spellings.items()
    if _traced(s) and op.name not in NOT_CALLED
}


CASTS = ("to", "float")
"""They change the type of the example, whatever type a law is asked in."""


@cache
def model_of(name: str) -> Between | None:
    op, spelling = SPELLINGS[name]
    torch.manual_seed(0)
    model = between(OPS[op], spelling)
    if model is None:
        return None
    # Examples are random as they are; the statistics of a batch_norm among them must stay possible.
    if isinstance(spelling, type):
        randomize(model)
    model.eval()
    return model


@cache
def said(name: str) -> tuple[Any, ...] | None:
    """Return what is said of the model of a spelling: its groups, MACs, sign, layers, and what the widths set."""
    model = model_of(name)
    if model is None:
        return None
    op, _ = SPELLINGS[name]
    t = traced(model, model.inputs(), torch.float32 if op in CASTS else torch.float64)
    keep(model, torch.float32, t)
    if t.gm.meta["traced"] != "fx":
        return None
    groups = sorted((g.width, g.step, g.pinned is None) for g in t.channels.groups)
    cost = nce_fx.analyze_cost(t.gm, t.channels)
    nodes = [node for node in t.gm.graph.nodes if (found := OPS.of(t.gm, node)) is not None and found.name == op]
    sign = any(never_negative(t.gm, node) for node in nodes)
    tie, names = analysis_of(t.gm).structure.tie, argument_names(OPS[op].signature)
    follow = {name for node, name in tie.attributes if node in nodes and (node.op == "call_module" or name in names)}
    return groups, cost.macs, sign, len(find_layers(t.gm)), follow


PINNED = {
    *("tril", "triu"),
    *(
        "local_response_norm",
        "normalize",
        "_weight_norm",
        "mv",
        "addmv",
        "expand_as",
        "gather",
        "scatter",
        "scatter_add",
        "index_add",
        "index_copy",
        "unfold",
        "t",
        "fill",
        "zero",
        "copy",
    ),
    *("nn.EmbeddingBag", "lstm_cell", "gru_cell", "rnn_cell"),
}
"""Rows whose example keeps the channels that it reads."""


@pytest.mark.parametrize("name", [name for name in OPS.rows if name not in NOT_CALLED])
def test_however_it_is_written_the_same_is_said(name):
    """Functions, methods, operators and overloads agree in all; modules, whose examples differ, in their channels."""
    spelled = {each: said(each) for each, (op, _) in SPELLINGS.items() if op == name}
    found = {each: what for each, what in spelled.items() if what is not None}
    assert found, f"the example of {name} fits none of its spellings"
    # What changes the axes of a tensor in place is not followed, and says so.
    found = {
        each: what for each, what in found.items() if OPS[name].kind != "movement" or not in_place(SPELLINGS[each][1])
    }
    calls = {each: what for each, what in found.items() if not isinstance(SPELLINGS[each][1], type)}
    assert len({repr(what) for what in calls.values()}) <= 1, calls
    assert len({repr(what[0]) for what in found.values()}) <= 1, found
    follow, row = {each for what in found.values() for each in what[4]}, OPS[name].follows
    assert follow == (set() if isinstance(row, Absent) else {*row} & (follow | {*row} - {"groups"}))
    assert name in PINNED or any(free for what in found.values() for *_, free in what[0]), found

    assert golden_of_op(name) == KEPT[f"op {name}"], MEANT


def golden_of_op(name: str) -> str:
    """Return what is said of an operation between two layers, by the graph of one of its spellings."""
    each = next(each for each, (op, _) in SPELLINGS.items() if op == name and said(each) is not None)
    model = model_of(each)
    assert model is not None
    return line(traced(model, model.inputs(), torch.float32 if name in CASTS else torch.float64).gm)


@pytest.mark.parametrize("name", [name for name, (op, _) in SPELLINGS.items() if op not in CASTS])
def test_laws_1_3_and_6_hold_in_every_spelling(name):
    model = model_of(name)
    if model is None or said(name) is None:
        return
    # One trace serves all: what else float32 could show, law 1 over the zoo shows.
    widening_keeps_the_function(model, model.inputs(), dtypes=(torch.float64,))
    narrowing_is_removal(model, model.inputs())
    cost_is_exact(model, model.inputs())


@pytest.mark.parametrize(
    ("layer", "never"),
    [
        (nn.Dropout(0.5), True),
        (nn.AlphaDropout(0.5), False),
        (nn.FeatureAlphaDropout(0.5), False),
        (nn.MaxPool2d(2), True),
    ],
)
def test_signs_hold_in_training_too(layer, never):
    torch.manual_seed(0)
    gm = nce_fx.trace(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), layer).train(), (noise(4, 3, 6, 6),))
    last = list(gm.graph.nodes)[-2]
    assert never_negative(gm, last) is never
    assert bool((gm(noise(4, 3, 6, 6)) >= 0).all()) is never


def test_a_bilinear_layer_of_one_value_with_itself():
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.pair, self.last = nn.Linear(4, 8), nn.Bilinear(8, 8, 6), nn.Linear(6, 2)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.pair(x, x))

    cost_is_exact(Squared().eval(), (noise(2, 4),))


REST: Any = {"channels": Absent("none"), "macs": Absent("none"), "example": lambda: (noise(2, 8),)}


def test_spellings_are_those_of_the_rows_that_are_asked_for():
    found = OPS.where(lambda op: op.kind == "product")
    assert {torch.matmul, torch.ops.aten.mm.default} <= found
    assert not {F.relu, F.layer_norm} & found
    assert found == {spelling for spelling, op in OPS.spellings.items() if op.kind == "product"}


def test_a_table_takes_no_spelling_twice():
    mine = Op(name="mine", kind="weighted", signature="input", spellings={F.linear: ""}, **REST)
    with pytest.raises(InputError, match=r"spelling of 'linear'"):
        OPS.adding(mine)
    with pytest.raises(InputError, match=r"called 'mine'"):
        OPS.adding(replace(mine, spellings={}), replace(mine, spellings={}, memory="view"))
    mine = replace(mine, spellings={noise: ""})
    with pytest.raises(InputError, match=r"spelling of 'mine': it cannot be one of 'yours' too"):
        OPS.adding(mine, replace(mine, name="yours"))


class Overwriting(nn.Module):
    """A value is overwritten between two layers, in one of the ways there are."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.ReLU(inplace=True)
        self.how = how

    def forward(self, x):
        x = self.first(x)
        y = x.sigmoid()
        if self.how == "module":
            self.relu(x)
        elif self.how == "by its place":
            F.relu(x, True)
        elif self.how == "by its name":
            F.relu(x, inplace=True)
        elif self.how == "method":
            x.mul_(y)
        elif self.how == "item":
            x[:, :, 0] = 2.0
        elif self.how == "out":
            torch.mul(y, 3.0, out=x)
        return self.second(x)


@pytest.mark.parametrize("how", ["module", "by its place", "by its name", "method", "item", "out"])
def test_what_is_overwritten_is_known_and_quantized_as_it_then_is(how):
    torch.manual_seed(0)
    model, x = Overwriting(how).eval(), torch.randn(2, 3, 4, 4)
    gm = nce_fx.trace(model, (x,))
    (written,) = filter(None, (overwritten(gm, node) for node in gm.graph.nodes))
    assert len(written) == 1
    with torch.no_grad():
        wanted = model(x)
        spec = nce_fx.QuantSpec(weight_bits=8, activation_bits=8, weight="minmax", activation="minmax")
        given = nce_fx.quantize(gm, spec, [x])(x)
    assert (given - wanted).abs().max() < 0.05 * wanted.abs().max()
