"""Passes that return a changed graph."""
