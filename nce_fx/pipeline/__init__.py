"""The spine of the compiler: passes, what holds them to their word, and the history that every graph carries."""

from nce_fx.pipeline.base import Given, Pass, PassResult, Pipeline
from nce_fx.pipeline.history import History, Step, history_of

__all__ = ["Given", "History", "Pass", "PassResult", "Pipeline", "Step", "history_of"]
