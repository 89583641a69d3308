"""Channel widths found by training the quantized network: by gradient, expanding (NCE on top of TAS), by default.

result = search(gm, data, SearchRecipe(epochs=60), budget=Budget(macs=1.0, params=1.0), spec=QuantSpec())
result.plan, result.log, result.seconds
"""

from nce_fx.search.adapt_log import AdaptLog
from nce_fx.search.asked import SearchResult
from nce_fx.search.recipes import AdaptRecipe, SearchRecipe, SlimmableRecipe, SurfaceRecipe
from nce_fx.search.search import METHODS, search
from nce_fx.search.search_log import Expansion, SearchEpoch, SearchLog
from nce_fx.search.slimmable import SlimmableLog
from nce_fx.search.surface_log import SurfaceLog

__all__ = [
    "METHODS",
    "AdaptLog",
    "AdaptRecipe",
    "Expansion",
    "SearchEpoch",
    "SearchLog",
    "SearchRecipe",
    "SearchResult",
    "SlimmableLog",
    "SlimmableRecipe",
    "SurfaceLog",
    "SurfaceRecipe",
    "search",
]
