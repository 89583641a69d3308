"""What the laws over whole models do not show: ways of tracing, what is said of a pin, errors in words."""

import copy
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils import parametrizations

import nce_fx
from nce_fx.errors import ChannelError, TraceError
from nce_fx.ids import labels
from nce_fx.ids.space import IdSpace
from nce_fx.ids.value import ChannelTensor
from nce_fx.models import MODELS
from nce_fx.ops.rules import mixing, movement
from nce_fx.passes.analysis.channels.groups import _counted
from nce_fx.passes.analysis.channels.structure import examine
from tests.laws import LAWS, QUANTIZED, kept_channels, the_budget_holds_at_any_bits
from tests.observing import counted
from tests.zoo.attention import WIDTH, PooledHeads


def image(channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Control flow on values' sizes inside a helper, which symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.drop = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5)
        self.b = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.a(x))
        for _ in range(x.shape[-1] // 3):
            x = F.relu(x)
        return self.b(self.drop(x.mean((2, 3))))


class NormAndActivation(nn.BatchNorm2d):
    """A norm with an activation inside, as timm writes it."""

    def forward(self, x):
        return F.silu(super().forward(x))


class BranchingToo(Branching):
    """The same, with such a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = NormAndActivation(6)


class Writing(nn.Module):
    """Adds in place to a part of a value, and nobody reads what the addition returns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = self.a(x)
        y[:, :, 1:].add_(self.b(x)[:, :, 1:])
        return self.c(y)


class Sorted(nn.Module):
    """Channels in the order of their values: nothing that copies keep."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        return self.b(torch.sort(self.a(x), dim=1).values)


def test_trace_says_how_and_keeps_the_names_of_parameters():
    model = Branching().eval()
    gm = nce_fx.trace(model, (image(),))
    assert gm.meta["traced"] == "export"
    assert {name for name, _ in gm.named_parameters()} == {name for name, _ in model.named_parameters()}
    assert nce_fx.trace(MODELS["resnet8"]().eval(), (image(),)).meta["traced"] == "fx"


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), Branching()])
def test_a_frozen_norm_stays_frozen(model):
    norm = next(module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)).eval()
    modes = [module.training for module in model.modules()]
    gm = nce_fx.trace(model, (image(),))
    assert [module.training for module in model.modules()] == modes
    assert gm.training
    assert not any(module.training for module in gm.modules() if isinstance(module, nn.BatchNorm2d))
    assert not norm.get_buffer("running_mean").any()
    gm(image())
    assert not norm.get_buffer("running_mean").any()


def test_an_exported_graph_follows_the_mode_and_takes_any_batch():
    gm = nce_fx.trace(Branching().eval(), (image(),))
    wide = nce_fx.resize(gm, {"a": 9})
    assert torch.allclose(wide(image()), gm(image()), atol=1e-5)
    assert gm(torch.cat([image()] * 3)).shape == (6, 4)
    before = wide.get_buffer("norm.running_mean").clone()
    wide.train()(image())
    assert not torch.equal(wide.get_buffer("norm.running_mean"), before)


@pytest.mark.parametrize("kind", [BranchingToo, Writing])
def test_a_graph_does_no_more_and_no_less_than_its_model(kind):
    model = kind().eval().double()
    x = (image().double(),)
    gm = nce_fx.trace(model, x)
    assert torch.allclose(gm(*x), model(*x), rtol=0, atol=1e-12)
    assert torch.allclose(nce_fx.resize(gm, {"a": 9})(*x), model(*x), rtol=0, atol=1e-12)


def test_what_mixes_channels_is_pinned_with_the_op_and_the_line():
    gm = nce_fx.trace(Sorted().eval(), (image(),))
    reason = nce_fx.analyze_channels(gm)["a"].pinned
    assert reason is not None
    assert "sort" in reason
    assert "test_channels.py:" in reason


def test_an_error_in_a_rule_pins_and_asks_for_a_report(monkeypatch):
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(2), nn.Softmax(1), nn.Flatten(), nn.Linear(216, 2))
    monkeypatch.setattr(mixing, "sum_over", None)
    (pinned,) = {group.pinned for group in nce_fx.analyze_channels(nce_fx.trace(net, (image(),))) if "0" in group.id}
    assert pinned is not None
    assert "TypeError" in pinned
    assert "please report it" in pinned


def test_a_norm_over_several_axes_leaves_the_channels_beside_them_free():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 3)

        def forward(self, x):
            return self.b(F.normalize(self.a(x), dim=(2, 3)))  # type: ignore[arg-type]

    gm = nce_fx.trace(Net(), (image(),))
    assert nce_fx.analyze_channels(gm).widths.keys() == {"a", "b"}
    wide = nce_fx.resize(gm, {"a": 9})
    assert torch.allclose(wide(image()), gm(image()), atol=1e-6)


def test_a_quantized_graph_can_be_analyzed_and_costed_but_not_resized():
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (image(),))
    quantized = nce_fx.quantize(gm)
    assert all(group.pinned for group in nce_fx.analyze_channels(quantized))
    assert nce_fx.analyze_cost(quantized).total.macs == nce_fx.analyze_cost(gm).total.macs
    with pytest.raises(ChannelError, match="pinned at"):
        nce_fx.resize(quantized, {"conv1": 8})


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"conv9": 8}, "no channel group 'conv9'"),
        ({"fc": 12}, "fc is pinned at 10"),
        ({"conv1": 0}, "cannot be 0 wide"),
    ],
)
def test_widths_that_cannot_be_are_refused_in_words(widths, message):
    gm = nce_fx.trace(MODELS["resnet8"]().eval(), (image(),))
    with pytest.raises(ChannelError, match=message):
        nce_fx.resize(gm, widths)


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(TraceError, match="does not take the example input \\(2x1x8x8\\)"):
        nce_fx.trace(MODELS["resnet8"]().eval(), (image(1),))


class Decides(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x):
        if x.sum() > 0:
            return self.first(x)
        return x


def test_a_model_that_values_steer_is_refused_with_its_own_line(capfd):
    with pytest.raises(
        TraceError,
        match=r"Decides cannot be traced .*\(first \(100% of the parameters\)\)\. fx: .*test_channels\.py:\d+",
    ) as caught:
        nce_fx.trace(Decides(), (torch.ones(1, 4),))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["code", "graph", "meta"])
def test_a_part_named_as_a_part_of_every_graph_is_refused_and_fits_inside_another(name):
    model = nn.Module()
    model.add_module(name, nn.Linear(4, 4))
    model.forward = lambda x: getattr(model, name)(x)
    with pytest.raises(TraceError, match=f"Module.{name} cannot be traced: .*rename it"):
        nce_fx.trace(model, (torch.randn(1, 4),))


def test_an_input_that_no_way_of_tracing_takes_is_what_is_named():
    model = Decides().train()
    with pytest.raises(TraceError, match=r"Decides does not take the example input \(1x5\): .*test_channels\.py:\d+"):
        nce_fx.trace(model, (torch.ones(1, 5),))
    assert model.training


def test_resizing_again_and_back():
    gm = nce_fx.trace(MODELS["resnet8"]().eval().double(), (image().double(),))
    wide = nce_fx.resize(nce_fx.resize(gm, {"conv1": 6}), {"conv1": 7, "layer1.0.conv1": 9})
    assert torch.allclose(wide(image().double()), gm(image().double()), rtol=0, atol=1e-12)
    assert nce_fx.analyze_channels(wide)["conv1"].width == 7


def test_dropout_follows_the_mode():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return F.dropout(self.fc(x), 0.5, self.training)

    gm = nce_fx.trace(Dropping().eval(), (torch.randn(2, 8),))
    x = torch.randn(64, 8)
    assert torch.equal(gm(x), gm(x))
    assert (gm.train()(x) == 0).any()


@pytest.mark.parametrize("norm", [True, False])
def test_narrowing_keeps_the_channels_that_carry_most(norm):
    torch.manual_seed(0)
    first, scales, last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
    model = nn.Sequential(first, scales if norm else nn.Identity(), nn.ReLU(), last).eval()
    with torch.no_grad():
        # Channel 0 has the largest weights; 1 is read by nobody; 2 and 3 carry what there is, 3 more than 2.
        first.weight.copy_(first.weight.sign())
        first.weight[0] *= 4
        last.weight.copy_(last.weight.sign() * torch.tensor([1.0, 0.0, 2.0, 3.0]).view(1, 4, 1, 1))
        scales.weight.copy_(torch.tensor([0.1, 9.0, 1.0, 1.0]))
    gm = nce_fx.trace(model, (image(),))
    group = next(g.id for g in nce_fx.analyze_channels(gm) if g.pinned is None)
    kept = [3] if norm else [0]
    assert kept_channels(gm, {group: 1})["3.weight", 1] == kept
    assert kept_channels(gm, {group: 2})["0.weight", 0] == ([2, 3] if norm else [0, 3])


def test_a_disabled_autocast_is_no_wall():
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.a(x)
            with torch.autocast(x.device.type, enabled=False):
                x = x.softmax(1) @ (x.transpose(1, 2) @ x)
            return self.b(x) if x.shape[1] > 1 else x

    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    model = Inside().eval()
    gm = nce_fx.trace(model, (x,))
    assert gm.meta["traced"] == "export"
    assert torch.allclose(gm(x), model(x), atol=1e-6)
    cost = nce_fx.analyze_cost(gm)
    assert (cost.macs, cost.params) == counted(gm, (x,))


@pytest.mark.parametrize("factor", [1.75, 0.6])
def test_large_weights_are_gathered_in_blocks(monkeypatch, factor):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    x = torch.randn(4, 8)
    gm = nce_fx.trace(model, (x,))
    widths = {"0": int(40 * factor), "2": int(64 * factor)}
    whole = nce_fx.resize(gm, widths)
    monkeypatch.setattr("nce_fx.passes.transform.resized_weights.BLOCK", 300)
    in_blocks = nce_fx.resize(gm, widths)
    torch.testing.assert_close(in_blocks(x), model(x) if factor > 1 else whole(x))
    if factor > 1:
        copies = in_blocks.get_parameter("2.weight")
        assert any(not torch.equal(a, b) for a, b in zip(copies, gm.get_parameter("2.weight"), strict=False))


def test_tokens_that_are_joined_are_not_named_one_by_one(monkeypatch):
    """Nor where a view writes sizes down that no longer hold: its repair comes before anything is laid out."""
    largest = []

    def watched(*args):
        label = labels.reshape(*args)
        largest.append(label.untyped_storage().nbytes())
        return label

    monkeypatch.setattr(movement, "reshape", watched)
    gm = nce_fx.trace(PooledHeads().eval(), (torch.randn(1, 1 + 4096, WIDTH),))
    structure, proof = examine(gm)
    for value in (*structure.tie.seen.values(), *proof.env.values()):
        if isinstance(value, ChannelTensor):
            largest += [label.untyped_storage().nbytes() for label in value.labels]
    assert all(group.free for group in structure.groups if group.axis[0].startswith("qkv"))
    assert max(largest) < 4096


class TiedDepthwise(nn.Module):
    """Two depthwise convolutions with one weight: each says for itself how many groups it has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 3, groups=6)
        self.fc = nn.Conv2d(6, 2, 1)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.b(F.relu(self.a(self.stem(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "law", ["1_widening_keeps_the_function", "3_narrowing_is_removal", "4_the_output_is_the_users"]
)
def test_layers_with_one_weight_are_resized_together(law):
    torch.manual_seed(0)
    LAWS[law](TiedDepthwise().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.mark.parametrize("layer", [nn.Linear(8, 8), nn.Linear(8, 5), nn.ConvTranspose1d(8, 6, 3)], ids=str)
def test_a_layer_whose_weight_is_orthogonal_is_in_one_group(layer):
    ends = (nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Identity()) if layer.weight.dim() > 2 else (nn.Linear(4, 8), nn.ReLU())
    model = nn.Sequential(*ends, parametrizations.orthogonal(copy.deepcopy(layer)))
    gm = nce_fx.trace(model.eval(), (torch.randn(2, 4, 8) if layer.weight.dim() > 2 else torch.randn(2, 4),))
    groups = [group for group in nce_fx.analyze_channels(gm).groups if str(len(ends)) in group.producers]
    assert len(groups) == 1
    assert "at " in (groups[0].pinned or "")


@pytest.mark.parametrize("numbers", [[3], [1, 4, 6], [0, 2, 2, 5], [4, 1, 1, 4, 0], [2, 2]])
def test_numbers_of_classes_are_counted_once_each(numbers):
    found, counts = _counted(np.array(numbers))
    assert found.tolist() == sorted(set(numbers))
    assert counts.tolist() == [numbers.count(each) for each in found]


class Shuffled(nn.Module):
    """Shuffles the channels of a convolution beside the image's own, or beside themselves."""

    def __init__(self, width: int, groups: int, *, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.conv, self.shuffle = nn.Conv2d(3, width, 3, padding=1), nn.ChannelShuffle(groups)
        self.after = nn.Conv2d(2 * width if twice else width + 3, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        return self.after(self.shuffle(torch.cat([y if self.twice else x, y], 1)))


@pytest.mark.parametrize(
    ("width", "groups", "twice"), [(5, 2, False), (4, 7, False), (8, 8, True), (6, 3, True), (5, 2, True)]
)
def test_every_width_that_a_group_is_offered_can_be_had(width, groups, twice):
    gm = nce_fx.trace(Shuffled(width, groups, twice=twice).eval(), (torch.zeros(1, 3, 4, 4),))
    group = nce_fx.analyze_channels(gm)["conv"]
    assert (group.pinned is None) is twice
    for wanted in range(1, 2 * width) if group.pinned is None else ():
        nce_fx.resize(gm, {"conv": wanted})(torch.zeros(1, 3, 4, 4))


class Empty(nn.Module):
    """Adds what goes through no channels at all, as configurations of some libraries do."""

    def __init__(self, functional=False):
        super().__init__()
        self.a, self.b, self.functional = nn.Linear(4, 6), nn.Linear(6, 3), functional
        self.into, self.back = nn.Linear(6, 0), nn.Linear(0, 6)

    def forward(self, x):
        y = self.a(x).relu()
        if self.functional:
            none = nn.functional.linear(y, self.into.weight, self.into.bias)
            return self.b(y + nn.functional.linear(none, self.back.weight, self.back.bias))
        return self.b(y + self.back(self.into(y)))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("functional", [False, True])
def test_layers_of_no_channels_are_analyzed(functional):
    model, x = Empty(functional).eval(), torch.randn(3, 4)
    gm = nce_fx.trace(model, (x,))
    channels = nce_fx.analyze_channels(gm)
    assert channels["a"].pinned is None
    reason = channels["into"].pinned or ""
    assert re.search(r"^it has no channels, at \S+ \(\S+\) at \S+test_channels.py:\d+$", reason)
    torch.testing.assert_close(nce_fx.resize(gm, {"a": 9})(x), model(x))
    assert nce_fx.analyze_sensitivity(gm, None, channels=channels).by_group["into"] == 0
    with pytest.warns(UserWarning, match="its weight has no values"):
        quantized = nce_fx.quantize(gm, batches=[x])
    assert quantized(x).isfinite().all()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors", "ignore:.*its weight has no values")
@pytest.mark.parametrize("functional", [False, True])
def test_the_laws_hold_where_layers_have_no_channels(functional):
    model, x = Empty(functional).eval(), torch.randn(3, 4)
    for law in LAWS.values():
        law(model, (x,))
    for seed in range(len(QUANTIZED)):
        the_budget_holds_at_any_bits(model, (x,), seed)


def test_whose_an_id_is_follows_axes_that_are_added_between_questions():
    space, lines = IdSpace(), []
    for number in range(40):
        lines.append(space.line((f"layer{number}", 0), 1 + number % 3).numpy())
        ids = np.concatenate([np.array([0]), *lines])
        owners = space.owners(ids)
        assert owners[0] == -1
        assert owners[1:].tolist() == [index for index, line in enumerate(lines) for _ in line]
        assert space.widths(owners)[0] == 0
        assert space.widths(owners)[1:].tolist() == [len(line) for line in lines for _ in line]


class Products(nn.Module):
    """Attention of one head, in einsums that PyTorch computes in another way where one channel is summed."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(5, 3)
        self.out = nn.Linear(3, 2)

    def forward(self, x):
        scores = torch.einsum("b i d, b j d -> b i j", self.q(x), self.k(x))
        return self.out(torch.einsum("b i j, b j d -> b i d", scores.softmax(-1), self.v(x)))


def test_an_einsum_is_narrowed_to_one_channel():
    x = torch.randn(2, 6, 5)
    gm = nce_fx.trace(Products().eval(), (x,))
    one = nce_fx.resize(gm, {"q": 1, "v": 1})
    assert one(x).shape == (2, 6, 2)
    torch.testing.assert_close(nce_fx.resize(gm, {"q": 5, "v": 4})(x), gm(x))


class OpenedByHand(nn.Module):
    """One layer's weight is read without the layer being called."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.scale, self.down = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, x):
        y = self.up(x)
        return self.down(F.relu(self.scale.weight @ y.transpose(1, 2) + self.scale.bias[:, None]).transpose(1, 2))


class Unopened(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, OpenedByHand) or super().is_leaf_module(m, module_qualified_name)


def test_what_a_module_left_whole_multiplies_beside_its_layers_pins_what_is_inside():
    model, x = nn.Sequential(nn.Linear(4, 6), OpenedByHand(), nn.Linear(6, 3)).double(), torch.randn(2, 5, 4).double()
    unopened = fx.GraphModule(model, Unopened().trace(model))
    groups = nce_fx.analyze_channels(nce_fx.trace(unopened, (x,))).groups
    inside = [group for group in groups if any(path.startswith("1.") for path in group.producers)]
    assert inside
    assert all("1 is left whole" in str(group.pinned) for group in inside), inside
    LAWS["6_cost_is_exact"](unopened, (x,))
