"""The search that expands: channel widths learned by gradient on the quantized network (NCE on top of TAS).

result = search(gm, data, SearchRecipe(epochs=60), budget=Budget(macs=1.0, params=1.0), spec=QuantSpec())
result.plan, result.log, result.seconds
"""

from nce_fx.search.search import SearchResult, search
from nce_fx.search.search_log import Expansion, SearchEpoch, SearchLog
from nce_fx.search.search_recipe import SearchRecipe

__all__ = ["Expansion", "SearchEpoch", "SearchLog", "SearchRecipe", "SearchResult", "search"]
