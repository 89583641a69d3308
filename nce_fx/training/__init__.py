"""Retraining: from a rewritten model to a trained one, on one device or many, stopped and resumed at will.

result = train(quantized, data, Recipe(epochs=30), teacher=float_model, directory="out/training")
result.model, result.accuracy, result.history
"""

from nce_fx.training.evaluation import evaluate
from nce_fx.training.loop import train
from nce_fx.training.recipe import Recipe
from nce_fx.training.result import EpochRecord, StepReport, TrainResult

__all__ = ["EpochRecord", "Recipe", "StepReport", "TrainResult", "evaluate", "train"]
