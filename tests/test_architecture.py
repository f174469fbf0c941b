"""Rules that hold for the whole package: size, imports, and what its code never does."""

from __future__ import annotations

import ast
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import qstar

PACKAGE = Path(qstar.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 500

REGISTRATIONS = {"AttentionInterface.register(NAME, packed_attention)"}
"""Calls at import that only enter a name in another library's table."""

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
"""Built-ins that run text as code. A method of that name, such as model.eval(), is something else."""
FORBIDDEN_NAMES = {"sympify", "parse_expr", "unsafe_load", "full_load", "import_module_from_string"}
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def breaches(source: str) -> list[str]:
    """What a module does that no module may do."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append(f"{name}()")
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(name=name) if name in FORBIDDEN_NAMES:
                found.append(name)
            case ast.Import(names=names):
                found += [a.name for a in names if a.name.split(".")[0] in FORBIDDEN_MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                found.append(module)
        if not isinstance(node, ast.Call):
            continue
        keywords = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else None for k in node.keywords}
        match node.func:
            case ast.Attribute(value=ast.Name(id="torch"), attr="load") if keywords.get("weights_only") is not True:
                found.append("torch.load without weights_only=True")
            case ast.Attribute(value=ast.Name(id="os"), attr="system" | "popen"):
                found.append("os.system")
            case ast.Attribute(value=ast.Name(id="yaml"), attr="load"):
                loader = node.args[1] if len(node.args) > 1 else None
                if not (isinstance(loader, ast.Name) and loader.id == "_StrictLoader"):
                    found.append("yaml.load without the strict safe loader")
        if keywords.get("trust_remote_code", False) is not False:
            found.append("trust_remote_code")
        if keywords.get("shell", False) is not False:
            found.append("shell")
        if keywords.get("allow_pickle", False) is not False:
            found.append("allow_pickle")
    return found


def run(code: str) -> str:
    """Standard output of Python code in a process of its own."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_package_was_found() -> None:
    assert len(MODULES) > 30


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_stays_small_and_safe(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    assert breaches(source) == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec(text)",
        "compile(text, '', 'exec')",
        "from sympy import sympify",
        "import sympy\nsympy.sympify(text)",
        "from sympy.parsing.sympy_parser import parse_expr",
        "import pickle",
        "import cloudpickle as c",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import os\nos.system(text)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "import yaml\nyaml.unsafe_load(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
        "subprocess.run(text, shell=True)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_the_rules_find_what_they_forbid(source: str) -> None:
    assert breaches(source)


def test_the_rules_let_other_code_pass() -> None:
    source = (
        "model.eval()\nre.compile(text)\nlayer.compile()\ntorch.load(path, weights_only=True)\nsubprocess.run([name])"
    )
    assert breaches(source) == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_importing_a_module_only_defines_things(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Expr):
            text = ast.unparse(node)
            assert isinstance(node.value, ast.Constant) or text in REGISTRATIONS, (
                f"line {node.lineno}: {text} at import"
            )
        elif isinstance(node, ast.If):
            test = ast.unparse(node.test)
            assert test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") or "__name__ ==" in test, f"line {node.lineno}"
        else:
            allowed = (
                ast.Import,
                ast.ImportFrom,
                ast.FunctionDef,
                ast.AsyncFunctionDef,
                ast.ClassDef,
                ast.Assign,
                ast.AnnAssign,
            )
            assert isinstance(node, allowed), f"line {node.lineno}: {type(node).__name__} at import"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree) or not tree.body


def test_the_search_runs_without_torch() -> None:
    names = [f"qstar.search.{path.stem}" for path in (PACKAGE / "search").glob("*.py") if path.stem != "__init__"]
    blocked = "import sys\nfor name in ('torch', 'transformers', 'trl', 'datasets'): sys.modules[name] = None\n"
    code = f"{blocked}import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
    code += (
        "from tests.search.helpers import HAND, search\n"  # not only imported: one search from start to end
        "print(search(HAND, 'astar').tree.nodes[0].order, 'torch' in sys.modules and sys.modules['torch'])\n"
    )
    assert run(code).split() == ["0", "None"]


@pytest.mark.parametrize(
    "name", ["qstar", "qstar.cli", "qstar.config_load", "qstar.types", "qstar.trace", "qstar.problems.load"]
)
def test_light_modules_load_no_model_library(name: str) -> None:
    loaded = json.loads(run(f"import json, sys, {name}; print(json.dumps(sorted(sys.modules)))"))
    roots = {module.split(".")[0] for module in loaded}
    assert not roots & {"torch", "transformers", "trl", "datasets", "tokenizers", "accelerate", "pyarrow", "matplotlib"}
    assert name in loaded


def test_the_package_root_loads_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import qstar; print(*sorted(set(sys.modules) - before))"
    assert run(code).split() == ["qstar"]


def test_tests_reach_only_this_machine() -> None:
    # 192.0.2.0/24 is reserved for documentation.
    for address in (("192.0.2.1", 80), ("example.invalid", 80)):
        with pytest.raises(RuntimeError, match="tests run offline"):
            socket.create_connection(address, timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender, pytest.raises(RuntimeError, match="offline"):
        sender.sendto(b"x", ("192.0.2.1", 53))
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()
