"""A history as JSON, `history.json` of a result folder, and what it says of itself when it cannot be repeated."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch.fx import GraphModule

from nce_fx.errors import ArtifactError
from nce_fx.pipeline.base import Pass, PassResult, Pipeline
from nce_fx.pipeline.history import History, Step
from nce_fx.plan import model_fingerprint
from nce_fx.validated import first_problem


class StepRecord(BaseModel):
    """One pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any]
    source: str | None = None
    """``package.module:Class`` of a pass that is not nce-fx's own; for people, it is not imported."""
    graph: str = ""
    """Fingerprint of what it made; empty in folders of version 1, which do not say."""


class HistoryRecord(BaseModel):
    """`history.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    graph: str
    inputs: list[Any]
    traced_modes: dict[str, bool]
    modes: dict[str, bool]
    """Of the network as it was saved."""
    steps: tuple[StepRecord, ...]

    @staticmethod
    def of(history: History, inputs: list[Any], modes: Mapping[str, bool]) -> "HistoryRecord":
        """Return the record of a history that `History.check` found to be whole."""
        steps = [
            StepRecord(name=s.name, options=dict(s.options or {}), source=s.source, graph=s.graph)
            for s in history.steps
        ]
        traced = list(history.inputs) if history.inputs is not None else inputs
        return HistoryRecord(
            graph=history.graph, inputs=traced, traced_modes=dict(history.modes), modes=dict(modes), steps=tuple(steps)
        )

    @staticmethod
    def from_json(text: str) -> "HistoryRecord":
        """Return the record that a JSON text says.

        Raises:
            ArtifactError: it is damaged; says where.
        """
        try:
            return HistoryRecord.model_validate_json(text)
        except ValidationError as error:
            raise ArtifactError(f"the history is damaged at {first_problem(error)}") from error

    def to_json(self) -> str:
        """Return the text of `history.json`; the same history is the same bytes."""
        # Not sorted: what a pass makes may follow the order of a mapping among its options.
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def replay(self, gm: GraphModule, passes: Sequence[Pass]) -> GraphModule:
        """Apply the passes of the steps, see `passes_of`, to a traced graph, and check that each makes what it made.

        Raises:
            ArtifactError: a pass makes another graph than it made before.
        """
        made = iter(self.steps)

        def check(ran: Pass, before: GraphModule, result: PassResult) -> None:
            expected = next(made).graph
            if expected and model_fingerprint(result.graph_module) != expected:
                raise ArtifactError(
                    f"the pass {ran.name} makes another graph than it made when the network was saved: its code has "
                    "changed since, or something besides its options decides what it does (see Pass.decide)"
                )

        return Pipeline(tuple(passes), between=check)(gm).graph_module


def passes_of(steps: Iterable[Step | StepRecord], known: Callable[[str], type[Pass] | None]) -> tuple[Pass, ...]:
    """Return the passes of a history, with their options; ``known`` finds their classes by name.

    Raises:
        ArtifactError: one is not known. Nothing that a folder names is imported.
        PassError: options that this version of the pass does not have.
    """
    found = []
    for step in steps:
        kind = known(step.name)
        if kind is None:
            name = (step.source or "").rpartition(":")[2]
            missing = (
                f"{step.source}, which is not nce-fx's: a folder imports no code, give its class, "
                f"load(directory, model, passes=({name},)) or --pass {step.source}"
                if step.source
                else "which this nce-fx does not have: install the version that wrote the folder"
            )
            raise ArtifactError(f"the network was made with the pass {step.name}, {missing}")
        found.append(kind.from_options(step.options or {}))
    return tuple(found)
