"""The search as a callback of the training of the weights: a width step after every weight step, expansions between
epochs.

Everything random is a function of the recipe's seed and the position, and drawn on the CPU, so that all processes draw
the same widths and a resumed search draws what one that was never stopped drew.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from nce_fx.batches import read, samples_in
from nce_fx.data.loaders import Data
from nce_fx.devices import to_device
from nce_fx.errors import TrainingError
from nce_fx.passes.analysis.cost import CostReport
from nce_fx.passes.planning import Budget
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.passes.transform.widths import Order, WidthDraw
from nce_fx.processes import all_reduce_sum, call, sum_gradients
from nce_fx.search.asked import choices_of
from nce_fx.search.carrying import going_on_with, of_kind
from nce_fx.search.expansion import Grown, extended, grow, wider_candidate
from nce_fx.search.expected_cost import Costs, costs_of
from nce_fx.search.recipes import BETAS, SearchRecipe, tau_at, width_rate
from nce_fx.search.search_log import Expansion, SearchEpoch
from nce_fx.training.batches import batches_of
from nce_fx.training.checkpoint import last_good
from nce_fx.training.forward import forward_pass
from nce_fx.training.optimizer import momenta
from nce_fx.training.recipe import calmer, seed_at
from nce_fx.training.run import Callback, Run

_WEIGHTS, _WIDTHS = 1, 2
"""Which of a position's two steps a draw is for."""


class WidthSearch(Callback):
    """Learns the preferences of every group's candidates."""

    def __init__(
        self,
        data: Data,
        cost: CostReport,
        candidates: Mapping[str, tuple[int, ...]],
        order: Order,
        recipe: SearchRecipe,
        budget: Budget,
        spec: QuantSpec | None,
    ) -> None:
        """Start a search; ``data`` is the half that widths learn from, ``spec`` how the network is quantized."""
        self.data, self.cost, self.recipe, self.budget, self.spec = data, cost, recipe, budget, spec
        self.candidates, self.order = dict(candidates), order
        self.epochs: list[SearchEpoch] = []
        self.expansions: list[Expansion] = []
        self.sums = [0.0, 0.0]
        """Of this epoch's width steps: cross entropy over samples, samples."""
        self.costs: Costs = costs_of(cost.model, self.candidates, budget, recipe)
        self.optimizer: torch.optim.Adam | None = None
        self.memory: dict[str, Tensor] = {}
        """What Adam remembers, by group and name; taken up when the optimizer is made."""
        self.batches: Iterator[Any] = iter(())
        self.found: tuple[GraphModule | None, list[WidthDraw]] = (None, [])
        """The network whose draws were looked up last, and they."""

    def identity(self) -> dict[str, Any]:
        """Return the search's own choices."""
        # A search of before the methods had names was one by gradient.
        return choices_of(self.recipe, self.budget, self.spec, but=("method",))

    def structure(self, original: nn.Module, state: Mapping[str, Any]) -> nn.Module:
        """Return the network with the candidates it had: the same expansions in the same order."""
        network = super().structure(original, state)
        assert isinstance(network, GraphModule)
        network.train()
        for draw in of_kind(network, WidthDraw).values():
            draw.alpha.requires_grad_(False)
        self.epochs = [SearchEpoch(**record) for record in state.get("epochs", ())]
        self.expansions = [Expansion(**record) for record in state.get("expansions", ())]
        self.sums = list(state.get("sums", (0.0, 0.0)))
        for epoch in sorted({expansion.epoch for expansion in self.expansions}):
            self._adopt([expansion for expansion in self.expansions if expansion.epoch == epoch])
            network = self._grown(network, {}, epoch).network
        return network

    def state(self) -> dict[str, Any]:
        """Return what was logged, which says what the network's candidates are."""
        return {
            "epochs": [asdict(record) for record in self.epochs],
            "expansions": [asdict(expansion) for expansion in self.expansions],
            "sums": self.sums,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return what Adam remembers; the preferences are in the model."""
        if self.optimizer is None:
            return dict(self.memory)
        found = {}
        for group, parameter in zip(self.candidates, self.optimizer.param_groups[0]["params"], strict=True):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{group}/{name}"] = value.detach().cpu().clone()
        return found

    def restore(self, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take up Adam where it was."""
        self.memory = dict(tensors)

    def before_epoch(self, run: Run) -> None:
        """Open the batches of the widths, at the position of the weights."""
        if self.optimizer is None:
            self.optimizer = self._adam(run)
        if run.position.epoch >= self.recipe.warmup_epochs:
            size, seed = run.recipe.batch_size, run.recipe.seed
            loader = self.data.loader("train", size, seed, run.position.epoch, True)
            self.batches = batches_of(loader, run.engine, run.position.step)

    def before_step(self, run: Run) -> None:
        """Draw the widths that the weights are trained at."""
        self._draw(run, _WEIGHTS)

    def after_step(self, run: Run) -> None:
        """Make a step on the preferences.

        Raises:
            TrainingError: the loss is not finite, or the widths' half has too few batches.
        """
        if run.position.epoch < self.recipe.warmup_epochs:
            return
        assert self.optimizer is not None
        batch = next(self.batches, None)
        if batch is None:
            raise TrainingError("the half of the data that widths learn from has fewer batches than the other")
        weights = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
        preferences = self._preferences(run)
        _learn(weights, False)
        _learn(preferences, True)
        self._draw(run, _WIDTHS)
        self.optimizer.zero_grad(set_to_none=True)
        inputs, target = to_device(read(batch, run.model), run.engine.device)
        size = samples_in(inputs, target)
        with forward_pass(run.engine, run.recipe):
            output = call(run.model, inputs)
        loss = run.task.loss(output, target)
        totals = all_reduce_sum(torch.stack([loss.detach().double() * size, loss.new_tensor(size).double()])).tolist()
        if not math.isfinite(totals[0]):
            raise TrainingError(
                f"the loss of a width step is {totals[0]} at step {run.position.step + 1} of epoch "
                f"{run.position.epoch + 1}: {last_good(run.directory)}; {calmer(run.recipe)}"
            )
        (loss * (size / totals[1])).backward()
        sum_gradients(preferences)
        # The same in every process, so after the sum.
        draws = self._draws(run.model)
        cost = self.costs.loss([draw.preference() for draw in draws], [draw.preferred() for draw in draws])
        if cost is not None:
            cost.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        _learn(preferences, False)
        _learn(weights, True)
        self.sums = [self.sums[0] + totals[0], self.sums[1] + totals[1]]

    def after_epoch(self, run: Run) -> Run:
        """Log the epoch, and expand."""
        draws = self._draws(run.model)
        picks = [draw.preferred() for draw in draws]
        shares = [draw.preference().tolist() for draw in draws]
        chosen, braked = self._expanding(run, picks, shares) if self.recipe.expand else ([], {})
        self.epochs.append(
            SearchEpoch(
                epoch=run.position.epoch,
                # Not as the draws have it: a run that goes on from the last step of an epoch has drawn nothing yet.
                tau=self._tau(run, run.done - 1),
                loss=self.sums[0] / self.sums[1] if self.sums[1] else None,
                widths={draw.group: draw.widths[pick] for draw, pick in zip(draws, picks, strict=True)},
                mean={
                    draw.group: sum(w * p for w, p in zip(draw.widths, share, strict=True))
                    for draw, share in zip(draws, shares, strict=True)
                },
                widest={draw.group: draw.widths[-1] for draw in draws},
                preference={draw.group: share[-1] for draw, share in zip(draws, shares, strict=True)},
                used=self.costs.used(picks),
                braked=braked,
            )
        )
        self.sums = [0.0, 0.0]
        if not chosen:
            return run
        self.memory, self.optimizer = self.tensors(), None
        self.expansions += chosen
        self._adopt(chosen)
        grown = self._grown(run.model, momenta(run.model, run.optimizer), run.position.epoch)
        return going_on_with(run, grown.network, grown.momenta)

    def _grown(self, network: GraphModule, momenta: Mapping[str, Tensor], epoch: int) -> Grown:
        """Return the network with the candidates as they now are."""
        seed = seed_at(self.recipe.seed, epoch)
        grown = grow(network, self.candidates, self.order, momenta, self.spec, seed, self.recipe.mixing)
        self.order = grown.order
        return grown

    def _expanding(
        self, run: Run, picks: list[int], shares: list[list[float]]
    ) -> tuple[list[Expansion], dict[str, str]]:
        """Return which groups get a wider candidate, and which would but for a brake."""
        chosen: list[Expansion] = []
        braked: dict[str, str] = {}
        epoch, threshold = run.position.epoch, self.recipe.threshold
        if not self.recipe.warmup_epochs < epoch < self.recipe.epochs:
            return chosen, braked
        over = self.costs.over(picks)
        for (group, widths), share in zip(self.candidates.items(), shares, strict=True):
            if share[-1] <= threshold:
                continue
            after = wider_candidate(self.cost.model.channels[group], widths[-1], self.recipe)
            if after is None:
                braked[group] = f"the upper limit: no legal width up to {self.recipe.max_ratio:g} times the original"
            elif over is not None:
                braked[group] = f"the preferred network is over its {over}"
            elif (never := self._never_fits(group, after)) is not None:
                braked[group] = f"{after} channels exceed the {never} even with all others at their narrowest"
            else:
                chosen.append(Expansion(epoch, group, widths[-1], after, share[-1], threshold))
        return chosen, braked

    def _never_fits(self, group: str, width: int) -> str | None:
        narrow = {other: widths[0] for other, widths in self.candidates.items()}
        totals = self.cost.model.totals(self.cost.model.channels.part_widths({**narrow, group: width}))
        limits = self.budget.limits(self.cost.model.totals(self.cost.part_widths))
        return next((name for name, limit in limits.items() if totals[name] > limit), None)

    def _adopt(self, expansions: list[Expansion]) -> None:
        for expansion in expansions:
            self.candidates[expansion.group] = (*self.candidates[expansion.group], expansion.after)
        self.costs = costs_of(self.cost.model, self.candidates, self.budget, self.recipe)

    def _draws(self, model: GraphModule) -> list[WidthDraw]:
        """Return the draws in the order of the groups."""
        if self.found[0] is not model:
            by_group = {draw.group: draw for draw in of_kind(model, WidthDraw).values()}
            self.found = model, [by_group[group] for group in self.candidates]
        return self.found[1]

    def _preferences(self, run: Run) -> list[Tensor]:
        return [draw.alpha for draw in self._draws(run.model)]

    def _draw(self, run: Run, which: int) -> None:
        """Set noise and temperature of every draw for one step."""
        position, tau = run.position, self._tau(run, run.done)
        seed = seed_at(self.recipe.seed, position.epoch, position.step, -which)
        generator = torch.Generator().manual_seed(seed)
        for draw in self._draws(run.model):
            uniform = torch.rand(2, len(draw.widths), generator=generator, dtype=torch.float64)
            draw.noise.copy_(-(-uniform.clamp(1e-20).log()).log())
            draw.tau = tau

    def _tau(self, run: Run, steps: int) -> float:
        """Return the temperature of the step after so many."""
        begin = self.recipe.warmup_epochs * run.steps_per_epoch
        return tau_at(self.recipe, (steps - begin) / max(1, self.recipe.epochs * run.steps_per_epoch - begin))

    def _adam(self, run: Run) -> torch.optim.Adam:
        steps = (self.recipe.epochs - self.recipe.warmup_epochs) * run.steps_per_epoch
        rate, decay = width_rate(self.recipe, steps), self.recipe.width_weight_decay
        preferences = self._preferences(run)
        optimizer = torch.optim.Adam(preferences, rate, BETAS, weight_decay=decay)
        for group, parameter in zip(self.candidates, preferences, strict=True):
            for name in ("step", "exp_avg", "exp_avg_sq"):
                value = self.memory.get(f"{group}/{name}")
                if value is not None:
                    value = extended(value, len(parameter)).to(parameter.device) if value.dim() else value.clone()
                    optimizer.state[parameter][name] = value
        self.memory = {}
        return optimizer


def _learn(parameters: list[Tensor], whether: bool) -> None:
    for parameter in parameters:
        parameter.requires_grad_(whether)
