"""The evidence: float, uniform 2-bit, NCE and its controls, the same data, recipe and epochs, over many seeds."""
