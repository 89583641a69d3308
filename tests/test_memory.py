"""Memory of what is dropped is given back: what lives after any number of rounds is what lived after one.

What is given stays as it was, whatever model it is; `test_arguments.py` says so of each function.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph_module import _loader

import nce_fx
from nce_fx.models.resnet_cifar import resnet8
from nce_fx.passes.analysis.channels.interpreter import ChannelInterpreter
from nce_fx.passes.transform.fold import FoldBatchNorm
from nce_fx.passes.transform.quantize.remove import remove_quantizers
from nce_fx.search import SearchRecipe, search
from nce_fx.tracing.gradients import let_go, nothing_kept, reached
from nce_fx.training import Recipe, train
from tests.drawing import one_of
from tests.photograph import photograph, surroundings
from tests.search_runs import quarters
from tests.zoo import ZOO

_KINDS = (torch.Tensor, ChannelInterpreter, nn.Module, torch.fx.Graph, Node)
_ROUNDS = 2
_IMAGE = (torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(0)),)
_BATCHES = [(torch.randn(8, 1, 6, 6), torch.randint(0, 4, (8,))) for _ in range(2)]


def living() -> Counter[str]:
    """Return how many graphs, modules, runs, tensors and sources live, and the bytes that the tensors hold."""
    gc.collect()
    found: Counter[str] = Counter()
    storages: dict[int, int] = {}
    for item in gc.get_objects():
        kind = next((kind for kind in _KINDS if isinstance(item, kind)), None)
        if kind is not None:
            found[kind.__name__] += 1
        if type(item) in (torch.Tensor, nn.Parameter) and item.layout is torch.strided:
            storages[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
    return found + Counter(bytes=sum(storages.values()), sources=len(_loader.eval_cache))


def _traced() -> GraphModule:
    torch.manual_seed(0)
    return nce_fx.trace(resnet8(4, 1), _IMAGE)


def _wider(gm: GraphModule) -> dict[str, int]:
    return {g.id: g.width + g.step for g in nce_fx.analyze_channels(gm).groups if g.pinned is None}


def _saved(folder: Path) -> None:
    nce_fx.save(nce_fx.quantize(_traced(), nce_fx.QuantSpec(), _BATCHES), folder, force=True)
    nce_fx.load(folder, resnet8(4, 1))


def _trained(folder: Path) -> None:
    train(nce_fx.quantize(_traced(), nce_fx.QuantSpec(), _BATCHES), quarters(), Recipe(epochs=1, batch_size=96))


WORK: dict[str, Callable[[Path], object]] = {
    "trace": lambda _: _traced(),
    "channels": lambda _: nce_fx.analyze_channels(_traced()),
    "cost": lambda _: nce_fx.analyze_cost(_traced()),
    "sensitivity": lambda _: nce_fx.analyze_sensitivity(_traced(), _BATCHES),
    "resize": lambda _: nce_fx.resize(gm := _traced(), _wider(gm)),
    "fold": lambda _: FoldBatchNorm()(_traced()),
    "quantize": lambda _: remove_quantizers(nce_fx.quantize(_traced(), nce_fx.QuantSpec(), _BATCHES)),
    "networkx": lambda _: nce_fx.to_networkx(_traced()),
    "rewrite": lambda _: nce_fx.rewrite(resnet8(4, 1), _IMAGE, batches=_BATCHES),
    "save and load": _saved,
    "search": lambda _: search(_traced(), quarters(), SearchRecipe(epochs=2, warmup_epochs=1, batch_size=48)),
    "train": _trained,
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.long
def test_several_times_hold_what_one_holds(work: str, tmp_path: Path) -> None:
    """Each time with another model, of which nothing is kept."""
    WORK[work](tmp_path)
    before = living()
    for _ in range(_ROUNDS):
        WORK[work](tmp_path)
    assert not living() - before  # what earlier tests left may go meanwhile


@pytest.mark.long
def test_a_graph_that_is_kept_does_not_grow_with_what_is_asked_of_it() -> None:
    gm = _traced()
    widths = _wider(gm)
    nce_fx.resize(gm, widths)
    before = living()
    for seed in range(_ROUNDS):
        nce_fx.resize(gm, widths, seed=seed)
        nce_fx.analyze_cost(gm)
        nce_fx.quantize(gm, nce_fx.QuantSpec(), _BATCHES)
    assert not living() - before  # what earlier tests left may go meanwhile


@pytest.mark.long
def test_nothing_of_any_pattern_is_changed_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among them are in-place writes, views of views, heads that share a parameter, and models that count their calls.

    Half of the zoo is asked, half of that in training. That tracing changes no model, in both modes, law 0 says. A
    run's values are many megabytes in a large network, so they wait for no collection: they go when the last name for
    them goes, and of all runs only the first one of each graph is left, which is kept with it.
    """
    runs: weakref.WeakSet[ChannelInterpreter] = weakref.WeakSet()
    monkeypatch.setattr(ChannelInterpreter, "__init__", _counted(ChannelInterpreter.__init__, runs))
    kept: dict[str, list[weakref.ref[object]]] = {}
    changed, in_training = [], one_of(4, ZOO)
    # PyTorch holds the model of the first export of a process.
    nce_fx.trace(ZOO["asks_for_tensors"].make(), ZOO["asks_for_tensors"].inputs)
    runs.clear()
    gc.collect()
    gc.disable()
    try:
        for name in one_of(2, ZOO):
            pattern = ZOO[name]
            model = pattern.make().train(name in in_training)
            before, around = photograph((model, pattern.inputs)), surroundings()
            gm = nce_fx.trace(model, pattern.inputs)
            traced = photograph(gm)
            made = _worked(gm)
            if photograph((model, pattern.inputs)) != before or photograph(gm) != traced or surroundings() != around:
                changed.append(name)
            kept[name] = [weakref.ref(item) for item in (model, gm, gm.graph, *made)]
            assert len(runs) == len(kept), f"{name}: a run waits for the collector"
            del model, gm, made, before, traced
    finally:
        gc.enable()
    gc.collect()
    assert not changed
    assert not [name for name, items in kept.items() if any(item() is not None for item in items)]
    assert not runs


def _worked(gm: GraphModule) -> tuple[GraphModule, GraphModule]:
    channels = nce_fx.analyze_channels(gm)
    nce_fx.analyze_cost(gm, channels)
    nce_fx.analyze_sensitivity(gm, channels=channels)
    return nce_fx.resize(gm, _wider(gm)), nce_fx.quantize(gm)


def _counted(build: Callable[..., None], runs: weakref.WeakSet[ChannelInterpreter]) -> Callable[..., None]:
    def init(run: ChannelInterpreter, *args: object, **options: object) -> None:
        runs.add(run)
        build(run, *args, **options)

    return init


def test_the_gradients_of_a_deep_network_are_freed_without_a_deep_stack():
    layer, found = nn.Linear(2, 2), []

    def work() -> None:
        x = torch.zeros(1, 2)
        with nothing_kept():
            for _ in range(4000):
                x = x + layer(x).relu()
            names, functions = reached(layer, [x])
        del x
        let_go(functions)
        found.append(names)

    before = threading.stack_size(1 << 20)
    try:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found == [frozenset({"weight", "bias"})]
