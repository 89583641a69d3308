"""The networks that a surface is fitted to: trained one by one, wherever there is room, and kept as they come."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from nce_fx.data.loaders import Data
from nce_fx.errors import ArtifactError
from nce_fx.executor import executor, results
from nce_fx.files import write_whole
from nce_fx.frozen import Frozen
from nce_fx.passes.transform.quantize import QuantSpec
from nce_fx.passes.transform.resize import resize
from nce_fx.plain_text import read_json
from nce_fx.processes import start_engine
from nce_fx.search.asked import Asked, calibrated
from nce_fx.search.recipes import SurfaceRecipe
from nce_fx.tasks import LossLike
from nce_fx.tensor_file import digest
from nce_fx.training.evaluation import evaluate
from nce_fx.training.loop import train
from nce_fx.training.result import StepReport

STATE = "networks.json"
"""The file that has every network that was trained, at any time: where a search that was stopped goes on."""


@dataclass(frozen=True)
class Wanted(Frozen):
    """A network to train."""

    round: int
    """Counted from 1; one more than there are for those that are compared at the end."""
    what: str
    """``centre``, ``drawn`` or ``final``."""
    widths: Mapping[str, int]
    """Of the groups that have a choice."""
    seed: int


@dataclass(frozen=True)
class Measured:
    """What data held out says of a trained network."""

    loss: float
    score: float
    """By the metric that goes with the loss: the accuracy, where that is cross entropy."""
    seconds: float = field(compare=False)


def train_network(
    gm: GraphModule, data: Data, spec: QuantSpec | None, loss: LossLike, recipe: SurfaceRecipe, wanted: Wanted
) -> Measured:
    """Train a network at its widths, in float and then at low precision, and measure it on the test split of the data.

    Args:
        gm: the float network at its original widths.
        data: its test split is what is held out.
        spec: how it is quantized.
        loss: what is minimised.
        recipe: of the search.
        wanted: the widths, and the seed of all that is random.
    """
    begin = time.monotonic()
    network = resize(gm, wanted.widths, seed=wanted.seed)
    if recipe.float_epochs:
        network = train(network, data, recipe.in_float(wanted.seed), loss=loss, metric="loss").model
    student = calibrated(network, spec, data, seed=wanted.seed)
    teacher = network if recipe.distill else None
    result = train(student, data, recipe.at_low_precision(wanted.seed), teacher=teacher, loss=loss, metric="loss")
    score = evaluate(result.model, data, recipe.batch_size, loss=loss)
    return Measured(result.score, score, time.monotonic() - begin)


def _on_threads(threads: int, *arguments: Any) -> Measured:
    """Train with as many threads as the process that asks: another number gives other bits."""
    torch.set_num_threads(threads)
    return train_network(*arguments)


@dataclass
class Networks:
    """Trains networks that are not there yet; ``found`` has them in the order in which they were wanted."""

    asked: Asked
    recipe: SurfaceRecipe
    data: Data
    report: Callable[[StepReport], None]
    in_all: int = field(init=False)
    found: list[tuple[Wanted, Measured]] = field(default_factory=list)
    _known: dict[int, tuple[Wanted, Measured]] = field(default_factory=dict)
    """By place in that order: what was trained, this time or before."""
    _identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.in_all = recipe.rounds * (recipe.repeats + recipe.networks) + recipe.finals * (1 + recipe.candidates)
        self._identity = self._told_apart()
        if self._file is not None and self._file.exists():
            self._known = self._read(self._file)

    def train(self, wanted: Sequence[Wanted]) -> None:
        """Train some more."""
        first = len(self.found)
        missing = {first + place: one for place, one in enumerate(wanted) if first + place not in self._known}
        asked = self.asked
        shared = (torch.get_num_threads(), asked.gm, self.data, asked.spec, asked.loss, self.recipe)
        with executor(asked.workers, asked.scheduler) as pool:
            jobs = {place: (*shared, one) for place, one in missing.items()}
            for place, measured in results(pool, _on_threads, jobs):
                self._known[place] = missing[place], measured
                self._write()
                self._tell(missing[place], measured)
        self.found += [self._known[first + place] for place in range(len(wanted))]

    @property
    def seconds(self) -> float:
        """What training took, all networks added up."""
        return sum(measured.seconds for _, measured in self.found)

    def _tell(self, wanted: Wanted, measured: Measured) -> None:
        done, rounds = len(self._known), self.recipe.rounds + 1
        mean = sum(measured.seconds for _, measured in self._known.values()) / done
        left = max(0.0, (self.in_all - done) * mean / self.asked.workers)
        self.report(StepReport(wanted.round, rounds, done, self.in_all, measured.loss, None, None, left))

    @property
    def _file(self) -> Path | None:
        return None if self.asked.directory is None else self.asked.directory / STATE

    def _told_apart(self) -> dict[str, Any]:
        """Return what the same search has again, and another has not."""
        asked = self.asked
        known: dict[str, Any] = {
            "data": asked.data.name,
            "samples": len(asked.data.train),
            "starting weights": digest(dict(asked.gm.named_parameters()) | dict(asked.gm.named_buffers()))[:16],
            "quantization": repr(asked.spec),
            "budget": asked.budget.as_mapping(),
            "loss": asked.loss if isinstance(asked.loss, str | None) else "of the caller's own",
        }
        return known | {f"recipe.{name}": value for name, value in self.recipe.to_dict().items()}

    def _write(self) -> None:
        if self._file is None or not start_engine().is_main:
            return
        rows = [{"place": place, **asdict(w), **asdict(m)} for place, (w, m) in sorted(self._known.items())]
        text = json.dumps({"search": self._identity, "networks": rows}, indent=1, default=dict)
        write_whole(self._file, (text + "\n").encode())

    def _read(self, path: Path) -> dict[int, tuple[Wanted, Measured]]:
        try:
            kept = read_json(path.read_bytes())
            theirs, rows = kept["search"], kept["networks"]
            known = {}
            for row in rows:
                wanted = Wanted(row["round"], row["what"], row["widths"], row["seed"])
                known[row["place"]] = wanted, Measured(row["loss"], row["score"], row["seconds"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} is damaged ({error!r}): remove it to start anew") from error
        for name, value in self._identity.items():
            if theirs.get(name) != value:
                raise ArtifactError(
                    f"{path} is of another search ({name}: {theirs.get(name)!r} there, {value!r} here);"
                    " choose another directory, or remove it"
                )
        return known
