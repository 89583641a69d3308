"""The second run goes the way of the first: the same statements and questions at each node, whose answers are known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from nce_fx.errors import one_line
from nce_fx.ids.labels import Label, Layout, bare, core
from nce_fx.ids.rule_interface import Fact, Statement
from nce_fx.passes.analysis.channels.interpreter import ChannelInterpreter
from nce_fx.passes.analysis.channels.projection import AstrayError, Mismatch, Relayout
from nce_fx.passes.analysis.channels.tie import Tie


class Replay(ChannelInterpreter):
    """A run at new widths, where (id, copy) stands in the place of an id; a rule that goes another way is told so."""

    def __init__(self, gm: GraphModule, first: Tie) -> None:
        super().__init__(gm, first.space, first.tensors)
        self.first = first
        self.rules, self.producers, self.merged = first.rules, first.producers, first.merged
        self.span = first.space.end
        self.views = 0
        """How many views the current node has made."""

    def ids(self, label: torch.Tensor) -> torch.Tensor:
        ids: torch.Tensor = bare(label) % self.span
        return ids

    def _met(self, word: str) -> Statement:
        meeting = self.first.meetings.get((self.here, self.step))
        fact = self.fact(word)
        if meeting is None or meeting.fact != fact:
            raise self._astray(fact, meeting)
        self.step += 1
        return meeting

    def _answer(self, word: str, labels: Sequence[Label], axis: int | None = None) -> Any:
        """Return what was answered in the first run to the question that is asked now, of the same channels."""
        answer = self.first.answers.get((self.here, self.asked))
        fact = self.fact(word, labels, axis)
        if answer is None or answer.fact != fact or not all(map(self._same_channels, answer.labels, labels)):
            raise self._astray(fact, answer)
        self.asked += 1
        return answer.answer

    def _same_channels(self, old: Label, new: Label) -> bool:
        """Whether a label names no channel that an old one does not name."""
        names, known = self.ids(core(new)).numpy(), bare(core(old)).numpy()
        return np.array_equal(names, known) or bool(np.isin(names, known).all())

    def _astray(self, fact: Fact | None, before: Statement | None) -> AstrayError:
        known = [fact] if fact else []
        known += [before.fact] if before else []
        within = next((each.within for each in known if each.within), "")
        who = f"its channel rule {within}" if within else f"the rule {known[0].rule} of this operation"
        now = f"says or asks {fact}" if fact else "has no more to say or ask"
        then = f"said or asked {before.fact}" if before else "had no more to say or ask"
        return AstrayError(
            f"{who} goes another way at other widths: it {now} where it {then} at the traced ones; "
            "write it so that no branch and no loop depends on a shape"
        )

    def apply(
        self, rule: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], users: bool = False
    ) -> Any:
        try:
            return super().apply(rule, args, kwargs, users)
        except (Mismatch, Relayout, AstrayError):
            raise
        except Exception as error:
            if not users:
                raise
            name = getattr(rule, "__qualname__", type(rule).__name__)
            raise AstrayError(f"its channel rule {name} fails at other widths: {one_line(error)}") from error

    def complete(self) -> None:
        """Demand that the current node has said and asked all that it did in the first run."""
        here = self.here, self.step, self.asked
        if (self.step, self.asked) != self.first.taken[self.here]:
            left = self.first.meetings.get(here[:2]) or self.first.answers.get((self.here, self.asked))
            raise self._astray(None, left)

    def number(self, values: tuple[Any, ...], label: Label) -> None:
        if self._answer("number", (label,)) != values:
            raise Mismatch("a number that enters the computation is computed from a width", bare(label) % self.span)

    def decide(self, word: str, labels: Sequence[Label], question: Callable[[], Any], axis: int | None = None) -> Any:
        return self._answer(word, labels, axis)

    def original(self, value: Any) -> Any:
        return self._met("original").labels[0]

    def laid_out(self, label: Label, moving: frozenset[int]) -> Layout:
        before, place = self.first.views.get(self.node, []), self.views
        self.views += 1
        # What is made of several views may take another way through them where an axis has one entry.
        if place < len(before) and before[place].dims == label.dim():
            return replace(before[place], moving=moving | before[place].moving)
        return Layout(moving)
