"""Tests of the measurements share what all tests do."""

from tests.conftest import ctrl_c_raises  # noqa: F401
