"""What the docs say is so: pages that are made from the code are those that it makes."""

from tests import command_line_page


def test_the_reference_of_the_command_line_is_of_the_commands():
    """To make it anew: ``python -m tests.command_line_page``."""
    assert command_line_page.PAGE.read_text() == command_line_page.page()
