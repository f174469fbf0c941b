"""Errors that a user can act on. The command line prints them as one line, without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Wrong input: the message names the thing and the fix."""
