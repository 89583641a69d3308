"""Width choices as nodes of a graph: in and out again, exact where a choice is sure, over every pattern of the zoo."""

import copy

import pytest
import torch
import torch.nn.functional as F

import nce_fx
from nce_fx.errors import ChannelError
from nce_fx.passes.transform.widths import InsertWidthChoices, RemoveWidthChoices, WidthChoice, WidthDraw, WidthNorm
from nce_fx.passes.transform.widths.choice_sites import channel_order, find_choice_sites
from nce_fx.passes.transform.widths.modules import Block, WidthInterpolation
from nce_fx.search import SearchRecipe
from nce_fx.search.carrying import of_kind
from nce_fx.search.expansion import first_candidates
from tests import drawing
from tests.observing import difference
from tests.observing import run as run_model
from tests.search_runs import free, traced
from tests.zoo import ZOO

SPECS = pytest.mark.parametrize("spec", [None, nce_fx.QuantSpec(), nce_fx.QuantSpec("lsq", "lsq", shortcuts="float")])


MIXING = pytest.mark.parametrize("mixing", ["zeros", "interpolate"])


@SPECS
@MIXING
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.long
def test_with_one_candidate_it_is_the_plain_network(spec, training, mixing):
    gm, x = traced(), torch.randn(5, 1, 6, 6)
    plain = (gm if spec is None else nce_fx.quantize(gm, spec, [x])).train(training)
    candidates = {group: (width,) for group, width in free(gm).items()}
    searched = InsertWidthChoices(candidates, mixing=mixing)(plain).graph_module
    kind = WidthChoice if mixing == "zeros" else WidthInterpolation
    assert {kind, WidthDraw, WidthNorm} <= {type(module) for module in searched.modules()}
    first, second = copy.deepcopy(plain), copy.deepcopy(searched)
    assert torch.equal(first(x), second(x))
    for network in (first, second):
        network(x).square().sum().backward()
    mine = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        if parameter.grad is not None:
            grad = mine[name].grad
            assert grad is not None
            assert torch.equal(parameter.grad, grad), name


@SPECS
@MIXING
def test_removing_the_choices_returns_the_plain_network(spec, mixing):
    gm, x = traced(), torch.randn(5, 1, 6, 6)
    plain = gm if spec is None else nce_fx.quantize(gm, spec, [x])
    candidates = {group: tuple(sorted({max(1, width // 2), width})) for group, width in free(gm).items()}
    back = RemoveWidthChoices()(InsertWidthChoices(candidates, mixing=mixing)(plain)).graph_module
    assert back.code == plain.code
    assert [node.name for node in back.graph.nodes] == [node.name for node in plain.graph.nodes]
    assert back.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in back.state_dict().items())
    assert torch.equal(back(x), plain(x))


@MIXING
def test_a_sure_preference_computes_the_network_resized_to_it(mixing):
    gm, x = traced(torch.float64), torch.randn(5, 1, 6, 6, dtype=torch.float64)
    widths = free(gm)
    candidates = {group: tuple(sorted({1 + width // 3, 2 + width // 3, width})) for group, width in widths.items()}
    searched = InsertWidthChoices(candidates, mixing=mixing)(gm).graph_module.eval()
    draws = of_kind(searched, WidthDraw).values()
    for pick in range(3):
        for draw in draws:
            draw.alpha.data.zero_()
            draw.alpha.data[min(pick, len(draw.widths) - 1)] = 1.0
        chosen = {draw.group: draw.widths[draw.preferred()] for draw in draws}
        expected = nce_fx.resize(gm, chosen)
        torch.testing.assert_close(searched(x), expected(x), rtol=1e-9, atol=1e-9)


def test_what_a_product_of_data_reads_has_no_choice():
    known = drawing.traced(ZOO["attention_single_head"].make(), ZOO["attention_single_head"].inputs)
    candidates = first_candidates(known.channels, SearchRecipe(epochs=9, expand=False)).candidates
    refused = find_choice_sites(known.gm, candidates, channel_order(known.gm)).refused
    assert refused
    assert refused.keys() < candidates.keys()
    with pytest.raises(ChannelError, match=r"cannot choose its width: .* reads it in a way that"):
        InsertWidthChoices(candidates)(known.gm)


def test_draws_are_of_two_candidates_and_shared():
    draw = WidthDraw("a", (2, 4, 6, 8)).train()
    seen = set()
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        draw.noise.copy_(-(-torch.rand(2, 4, generator=generator).log()).log())
        shares = draw()
        assert int((shares > 0).sum()) == 2
        assert shares.sum().item() == pytest.approx(1.0)
        seen.add(tuple((shares > 0).tolist()))
    assert len(seen) == 6
    searched = InsertWidthChoices({group: tuple({1, width}) for group, width in free(traced()).items()})(traced())
    users = {n.target: len(n.users) for n in searched.graph_module.graph.nodes if str(n.target).endswith("width_draw")}
    assert users["stem_width_draw"] == 5  # two norms, the inner layer, the side layer, the layer behind the cat


def test_a_choice_that_cannot_be_is_refused():
    with pytest.raises(ChannelError, match="rising widths that end with its own, 4"):
        InsertWidthChoices({"stem": (2, 3)})(traced())


@pytest.mark.parametrize(("narrow", "wide"), [(0, 1), (0, 2), (1, 2), (2, 3), (3, 3)])
def test_interpolation_is_the_published_formula(narrow, wide):
    torch.manual_seed(0)
    widths, x = (2, 3, 5, 8), torch.randn(3, 9, 4, dtype=torch.float64)
    order = torch.randperm(9)[:8]
    module = WidthInterpolation(-2, 9, (Block(0, order[:, None], torch.tensor(widths)),))
    shares = torch.zeros(4, dtype=torch.float64)
    shares[narrow] = 0.3
    shares[wide] += 1 - float(shares.sum())
    ordered = x[:, order]
    pooled = F.adaptive_avg_pool1d(ordered[:, : widths[narrow]].movedim(1, 2), widths[wide]).movedim(2, 1)
    mixed = 0.3 * pooled + 0.7 * ordered[:, : widths[wide]] if wide != narrow else ordered[:, : widths[wide]]
    expected = x.clone()
    expected[:, order] = 0.0
    expected[:, order[: widths[wide]]] = mixed
    torch.testing.assert_close(module(x, shares), expected)


def test_interpolation_leaves_channels_where_they_lie_in_memory():
    x = torch.randn(2, 5, 4, 4, requires_grad=True)
    module = WidthInterpolation(-3, 5, (Block(0, torch.arange(5)[:, None], torch.tensor([2, 5])),))
    mixed = module(x, torch.tensor([0.3, 0.7]))
    mixed.square().sum().backward()
    assert x.grad is not None
    assert mixed.stride() == x.stride() == x.grad.stride()


@pytest.mark.parametrize("name", drawing.one_of(4, ZOO))
def test_a_sure_preference_is_the_resized_network_for_every_pattern(name):
    known = drawing.traced(ZOO[name].make(), ZOO[name].inputs)
    candidates = first_candidates(known.channels, SearchRecipe(epochs=9, expand=False)).candidates
    for group in find_choice_sites(known.gm, candidates, channel_order(known.gm)).refused:
        del candidates[group]
    if not candidates:
        pytest.skip("none of its groups has a choice")
    searched = InsertWidthChoices(candidates)(known.gm).graph_module.eval()
    torch.manual_seed(0)
    draws = of_kind(searched, WidthDraw).values()
    for draw in draws:
        draw.alpha.data.normal_()
    resized = nce_fx.resize(known.gm, {draw.group: draw.widths[draw.preferred()] for draw in draws})
    assert difference(run_model(searched, known.inputs), run_model(resized, known.inputs)) <= 1e-9
    assert RemoveWidthChoices()(searched).graph_module.code == known.gm.code
