"""Errors that a user can act on. The command line prints them as one line, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


class UserError(ValueError):
    """Wrong input: the message names the thing and the fix."""


def exit_code(work: Callable[[], object], interrupted: str) -> int:
    """Do the work of a command; what a user can act on becomes one line. Returns 0, 1 or INTERRUPTED.

    interrupted: what to say after Ctrl-C.
    """
    try:
        work()
    except UserError as error:
        print(f"qstar: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"qstar: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    return 0


def printable(text: str) -> str:
    """Text as it may go to a terminal: control and direction characters, of a model or a file, become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
