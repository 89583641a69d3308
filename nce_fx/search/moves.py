"""Moves of widths beside the training of the weights: proposed between epochs, tried, kept or undone.

A try is two stretches of as many epochs. In the first the moved network trains, in the second the one that was not
moved, from where both began; in both the learning rate falls to zero. What held-out data then says of the two decides
which goes on.
Everything is a function of the recipe's seed and the position, and a checkpoint holds both networks, so that a search
that was stopped ends with the same widths.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from nce_fx.copying import copy_model
from nce_fx.devices import device_of
from nce_fx.errors import BudgetError
from nce_fx.passes.analysis.channels import analyze_channels
from nce_fx.passes.analysis.cost import CostReport, analyze_cost
from nce_fx.passes.planning import Budget, plan_widths
from nce_fx.passes.planning.budget import Reserve, budget_at, plan_and_build
from nce_fx.passes.transform.quantize import QuantSpec, RemoveQuantizers
from nce_fx.passes.transform.resize import ResizeChannels, gathers_of
from nce_fx.pipeline import Pipeline
from nce_fx.plan import WidthPlan
from nce_fx.search.adapt_log import Move, Tried
from nce_fx.search.asked import choices_of
from nce_fx.search.carrying import carried_momenta, going_on_with, quantizing, resized_anew
from nce_fx.search.channel_worth import worth_of_groups
from nce_fx.search.outcome import Importance
from nce_fx.search.recipes import AdaptRecipe
from nce_fx.training.checkpoint import by_kind, flat
from nce_fx.training.evaluation import measure
from nce_fx.training.optimizer import momenta
from nce_fx.training.recipe import seed_at
from nce_fx.training.run import Callback, Run

_SMALLEST = 0.25
"""Of the recipe's region: how small it becomes by moves that are undone."""


@dataclass
class Aside:
    """The network that waits while the other of a try is trained, and its momenta."""

    network: GraphModule
    momenta: dict[str, Tensor]


@dataclass
class Moves(Callback):
    """Moves widths while the weights train; ``path`` and ``tried`` say what came of it."""

    cost: CostReport
    """Of the network at its own widths, which the budget's ratios are of."""
    recipe: AdaptRecipe
    budget: Budget
    spec: QuantSpec | None
    batches: Sequence[Any]
    """What channels are worth is measured on."""
    path: list[Move] = field(default_factory=list)
    """The moves that stayed, in turn."""
    tried: list[Tried] = field(default_factory=list)
    trying: Move | None = None
    began: int = 0
    """The epochs that were done when this stretch of the try began."""
    region: float = 0.0
    loss: float | None = None
    """Of the moved network, once it has had its epochs."""
    aside: Aside | None = None

    def identity(self) -> dict[str, Any]:
        """Return the search's own choices."""
        return choices_of(self.recipe, self.budget, self.spec)

    def structure(self, original: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return the network in training as it was: the same moves in the same order."""
        network = super().structure(original, state)
        assert isinstance(network, GraphModule)
        network.train()
        self.region = state.get("region", self.recipe.region)
        self.path = [Move.from_dict(move) for move in state.get("path", ())]
        self.tried = [Tried(**each) for each in state.get("tried", ())]
        self.began, self.loss = state.get("began", 0), state.get("loss")
        for index, move in enumerate(self.path):
            network, _ = moved(network, move, self.spec, self._seed(index))
        if state.get("trying") is None:
            return network
        self.trying = Move.from_dict(state["trying"])
        other, _ = moved(network, self.trying, self.spec, self._seed(len(self.path)))
        if self.loss is None:
            network, other = other, network
        self.aside = Aside(other, {})
        return network

    def state(self) -> dict[str, Any]:
        """Return what the networks are made from."""
        return {
            "path": [asdict(move) for move in self.path],
            "tried": [asdict(each) for each in self.tried],
            "trying": None if self.trying is None else asdict(self.trying),
            "began": self.began,
            "region": self.region,
            "loss": self.loss,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the network that waits, and its momenta."""
        if self.aside is None:
            return {}
        return flat({"model": self.aside.network.state_dict(), "momentum": self.aside.momenta})

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take up the network that waits."""
        if self.aside is None:
            return
        kept = by_kind(tensors)
        self.aside.network.load_state_dict(kept["model"])
        self.aside.network.to(device_of(model))
        self.aside.momenta = kept["momentum"]

    def rate(self, done: float) -> float:
        """Return the share of the learning rate: in each stretch it falls to zero as a cosine.

        At a rate that stays, what held-out data says of two networks differs more by chance than by their widths.
        """
        if self.trying is None:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done - self.began) / self.recipe.every)))

    def after_epoch(self, run: Run) -> Run:
        """Go on with the try where its stretch has ended, or begin one."""
        done, every = run.position.epoch, self.recipe.every
        if self.trying is not None:
            if done - self.began < every:
                return run
            run = self._after_stretch(run)
        if self.trying is None and self.recipe.warmup_epochs <= done <= self.recipe.epochs - 2 * every:
            run = self._begin(run)
        return run

    def _begin(self, run: Run) -> Run:
        """Return the run that trains a moved network; the same one where nothing is to be moved."""
        move = self._proposed(run)
        if move is None and self.region < self.recipe.region:
            # Nothing can be moved by so little.
            self.region = self.recipe.region
            move = self._proposed(run)
        if move is None:
            return run
        memory = momenta(run.model, run.optimizer)
        network, carried = moved(run.model, move, self.spec, self._seed(len(self.path)), memory)
        self.aside, self.trying, self.loss, self.began = Aside(run.model, memory), move, None, run.position.epoch
        return going_on_with(run, network, carried)

    def _after_stretch(self, run: Run) -> Run:
        """Return the run with the other network, or with the better of the two."""
        assert self.aside is not None
        assert self.trying is not None
        loss = measure(run.model, run.data, run.recipe.batch_size, run.engine, run.task)
        other = self.aside
        if self.loss is None:
            self.aside = Aside(run.model, momenta(run.model, run.optimizer))
            self.loss, self.began = loss, run.position.epoch
            return going_on_with(run, other.network, other.momenta)
        stays = self.loss < loss * (1 - self.recipe.margin)
        before = analyze_channels(_plain(run.model)).widths
        self.tried.append(
            Tried(
                epoch=self.began - self.recipe.every,
                region=self.region,
                before={group: before[group] for group in self.trying.widths},
                after=self.trying.widths,
                loss=self.loss,
                without=loss,
                stays=stays,
            )
        )
        if stays:
            self.path.append(self.trying)
            run = going_on_with(run, other.network, other.momenta)
        else:
            self.region /= 2
            if self.region < _SMALLEST * self.recipe.region:
                self.region = self.recipe.region
        self.trying = self.loss = self.aside = None
        return run

    def _proposed(self, run: Run) -> Move | None:
        """Return the best move within the region, by what channels are worth to the network as it is."""
        plain = _plain(run.model)
        channels = analyze_channels(plain)
        rows = tuple(self.cost.model.quantities.values())
        quantized = None if self.spec is None else run.model
        cost = analyze_cost(plain, channels, quantized=quantized, hardware=self.cost.model.hardware, quantities=rows)
        worth = Importance(worth_of_groups(run.model, self.batches, run.task), "adapt")

        def plan(reserve: Reserve) -> WidthPlan:
            asked, most = budget_at(cost, self.cost, self.budget), 1 + self.region
            return plan_widths(
                channels, cost, worth, asked, min_width=1 / most, max_width=most, streams=0.0, reserve=reserve
            )

        def build(found: WidthPlan) -> GraphModule:
            how = ResizeChannels(found.changed, self._seed(len(self.path)))
            return Pipeline((how, *quantizing(self.spec)))(plain).graph_module

        try:
            found = plan_and_build(plan, build, self.budget, self.cost)[0]
        except BudgetError:
            return None
        if not found.changed:
            return None
        return Move(found.changed, ResizeChannels(found.changed).decide(plain).keep)

    def _seed(self, index: int) -> int:
        """Return the seed of the noise that parts copies, of a move by its number among those that stay."""
        return seed_at(self.recipe.seed, index)


def moved(
    network: GraphModule, move: Move, spec: QuantSpec | None, seed: int, memory: Mapping[str, Tensor] | None = None
) -> tuple[GraphModule, dict[str, Tensor]]:
    """Return a network in training at other widths, and what its optimizer remembers, by parameter name.

    Its float function stays where it widens. The network that is given goes on as it was.
    """
    plain = _plain(network)
    result = resized_anew(network, plain, ResizeChannels(move.widths, seed, move.keep), spec)
    carried = carried_momenta(result, memory or {}, gathers_of(plain, move.widths, move.keep))
    return result.to(device_of(network)).train(network.training), carried


def _plain(network: GraphModule) -> GraphModule:
    """Return the float network of one in training, with tensors of its own, on the CPU."""
    plain = RemoveQuantizers()(network).graph_module
    return copy_model(plain).cpu() if plain is network else plain.cpu()
