"""Documents say what is: generated pages are fresh, links resolve, snippets run, and what is named exists."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qstar.cli import parser
from qstar.config import RunConfig
from qstar.config_load import load_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md")])
SECTIONS = {field.name for field in dataclasses.fields(RunConfig)}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"]+)\"")
_PATH = re.compile(r"(?<![\w./-])(?:\./)?((?:scripts|configs|tests|docs|qstar)/[\w./-]*[\w])")
_VERB = re.compile(r"(?<![\w./-])(?<!from )qstar ([a-z][a-z-]*)((?: [^`\n|]*)?)")
_MODULE = re.compile(r"(?<![\w./-])((?:qstar|tests)(?:\.\w+)+)")
_FIELD = re.compile(rf"(?<![\w./-])((?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_0-9]+)+)(?=[=:\s`,;)]|$)", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return [body for name, body in _FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def code(text: str) -> str:
    """The code of a page, spans and blocks, one a line."""
    spans = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", _FENCE.sub("", text))
    return "\n".join([*(body for _, body in _FENCE.findall(text)), *spans])


def anchors(page: Path) -> set[str]:
    """The targets that a page's headings make."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    missing = []
    for groups in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        link = next(filter(None, groups))
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    return missing


def subparsers(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The verbs of a parser."""
    return {
        name: sub
        for action in of._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, sub in action.choices.items()
    }


def wrong_commands(text: str) -> list[str]:
    """`qstar VERB` without such a verb, and options that the verb does not have."""
    wrong, verbs = [], subparsers(parser())
    for verb, rest in _VERB.findall(text):
        if verb not in verbs:
            wrong.append(f"qstar {verb}")
            continue
        known = verbs[verb]
        words = rest.split("#")[0].split()
        if (inner := subparsers(known)) and words and words[0].isalpha():
            if words[0] not in inner:
                wrong.append(f"qstar {verb} {words[0]}")
                continue
            known = inner[words[0]]
        options = {option for action in known._actions for option in action.option_strings}
        wrong += [f"qstar {verb} {word}" for word in words if re.match(r"--[a-z]", word) and word not in options]
    return wrong


def wrong_paths(text: str) -> list[str]:
    """Files of this repository that are not there; a name in capitals is a placeholder."""
    return [path for path in _PATH.findall(text) if not re.search(r"[A-Z]{3}|\*", path) and not (ROOT / path).exists()]


def wrong_modules(text: str) -> list[str]:
    """Dotted names that are no module and no name in one."""
    return [name for name in _MODULE.findall(text) if not _exists(name.split("."))]


def _exists(parts: list[str]) -> bool:
    for count in range(len(parts), 0, -1):
        base, rest = ROOT.joinpath(*parts[:count]), parts[count:]
        source = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        if source.is_file():
            return _defines(source, rest)
    return False


def _defines(source: Path, names: list[str]) -> bool:
    body: list[Any] = ast.parse(source.read_text(encoding="utf-8")).body
    for name in names:
        found = None
        for node in body:
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            imported = [a.asname or a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
            if name in [getattr(node, "name", None), *(getattr(t, "id", None) for t in targets), *imported]:
                found = node
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def wrong_fields(text: str) -> list[str]:
    """Dotted configuration fields that do not exist. Names such as data.jsonl are files."""
    wrong = []
    for name in _FIELD.findall(text):
        value: Any = RunConfig()
        for part in name.split("."):
            value = getattr(value, part, wrong)
        if value is wrong and not re.search(r"\.(?:jsonl?|parquet|md|py|yaml|png)$", name):
            wrong.append(name)
    return wrong


def problems(text: str) -> list[str]:
    """Everything named in the code of a page that does not exist."""
    named = code(text)
    return [*wrong_commands(named), *wrong_paths(named), *wrong_modules(named), *wrong_fields(named)]


def test_generated_pages_are_what_the_code_says() -> None:
    command = [sys.executable, ROOT / "scripts" / "docs.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert missing_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_named_exists(page: Path) -> None:
    assert problems(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "`qstar fly`",
        "`qstar run configs/quickstart.yaml --fast`",
        "`qstar data look`",
        "`scripts/nothing.sh`",
        "```bash\nqstar run configs/nothing.yaml\n```",
        "`qstar/nothing.py`",
        "`qstar.nothing`",
        "`qstar.config.nothing`",
        "`qstar.solver.Solver.nothing`",
        "`python -m tests.nothing`",
        "`search.nothing`",
        "`qstar run configs/quickstart.yaml --set search.nothing=1`",
    ],
)
def test_the_check_finds_what_does_not_exist(text: str) -> None:
    assert problems(text)


def test_the_check_lets_the_rest_pass() -> None:
    assert problems("`qstar data check --config FILE`, `search.budget`, `qstar.solver.Solver.load`, `scripts/`") == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head\n[x](#a-head) [y](#no-head) [z](nothing.md) [web](https://example.org)\n")
    assert missing_links(page) == ["#no-head", "nothing.md"]


@pytest.mark.parametrize("name", ["extending.md", "concepts.md"])
def test_snippets_run(name: str, tmp_path: Path) -> None:
    program = tmp_path / "snippets.py"
    program.write_text("\n\n".join(blocks(ROOT / "docs" / name, "python")), encoding="utf-8")
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=lambda page: page.name)
def test_configurations_in_pages_load(page: Path, tmp_path: Path) -> None:
    for number, body in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(body, encoding="utf-8")
        load_config(path)
