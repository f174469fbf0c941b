"""Errors that a user can act on. The command line prints them as one line, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input: the message names the thing and the fix."""


def printable(text: str) -> str:
    """Text as it may go to a terminal: control and direction characters, of a model or a file, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
