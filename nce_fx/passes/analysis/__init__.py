"""Passes that look at the graph and return frozen values."""
