"""Write the pages of docs/ that are made from code: docs/config.md and docs/cli.md.

python scripts/docs.py            rewrite both
python scripts/docs.py --check    exit with 1 if a page is not what the code says; write nothing
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import os
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qstar import config
from qstar.cli import parser

DOCS = Path(__file__).resolve().parents[1] / "docs"

WIDTH = 100
"""Columns of a help text, whatever the terminal."""

CONFIG_HEAD = """\
# Configuration

Every field, its type, its default and what it does; made from `qstar/config.py` by `python scripts/docs.py`.

A YAML file names only what differs from the defaults; `--set search.budget=1024` changes one field of it for one
command. Unknown keys, wrong types and values out of range are refused, and the message names the field. The
configuration a run really used is in its `config.yaml`.

"""

CLI_HEAD = """\
# Command line

The help texts of all verbs; made from `qstar/cli.py` by `python scripts/docs.py`.

A command exits with 0 when it is done, 1 after an error the user can mend (one line on standard error, `--traceback`
shows where it came from), 2 for a wrong option and 130 after Ctrl-C.

"""


def config_page() -> str:
    """The reference of all configuration fields."""
    return CONFIG_HEAD + "\n".join(_section(config.RunConfig(), ""))


def _section(default: Any, where: str) -> Iterator[str]:
    """A heading, the docstring and a table of the fields of a configuration object; then its sections."""
    hints, texts = typing.get_type_hints(type(default)), field_docstrings(type(default))
    yield f"## {where or 'Top level'}"
    yield f"\n{inspect.cleandoc(default.__doc__)}\n"
    yield "| field | type | default | meaning |\n|---|---|---|---|"
    sections = []
    for field in dataclasses.fields(default):
        name, value = f"{where}.{field.name}".lstrip("."), getattr(default, field.name)
        if dataclasses.is_dataclass(value):
            yield f"| `{name}` | section | | see [{name}](#{name.replace('.', '')}) |"
            sections.append((name, value))
        else:
            yield f"| `{name}` | {_type(hints[field.name])} | `{_value(value)}` | {_cell(texts.get(field.name, ''))} |"
    yield ""
    for name, value in sections:
        yield from _section(value, name)


def field_docstrings(cls: type) -> dict[str, str]:
    """The string literal after each field of a dataclass."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            match after:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[statement.target.id] = text
    return texts


def _type(hint: Any) -> str:
    """A type as a reader of YAML knows it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if args:
        return " or ".join(_type(arg) for arg in args)
    return {type(None): "null", bool: "true or false", int: "whole number", float: "number", str: "text"}[hint]


def _value(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cli_page() -> str:
    """The help texts of the program and of every verb."""
    os.environ["COLUMNS"], os.environ["NO_COLOR"] = str(WIDTH), "1"
    return CLI_HEAD + "\n".join(
        f"## {p.prog}\n\n```text\n{_no_trailing_space(p.format_help())}\n```\n" for p in parsers(parser())
    )


def parsers(top: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its verbs, in the order of its help text."""
    yield top
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from parsers(sub)


def _no_trailing_space(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


PAGES = {"config.md": config_page, "cli.md": cli_page}


def main() -> int:
    """Write or check the pages; returns the exit code."""
    options = argparse.ArgumentParser(description="Write docs/config.md and docs/cli.md from the code.")
    options.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = options.parse_args().check
    stale = []
    for name, page in PAGES.items():
        path, text = DOCS / name, page()
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            stale.append(name)
        else:
            path.write_text(text, encoding="utf-8")
    if stale:
        print(f"docs/{' and docs/'.join(stale)} are not what the code says; run python scripts/docs.py")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
