"""What a bug report needs to say about a machine and an installation: the text of `qstar env`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

from qstar.runs.directory import versions

CPU_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "asimd", "bf16", "sve")
"""Instruction sets that decide how fast and with which rounding torch multiplies matrices."""


def environment() -> dict[str, Any]:
    """Versions and hardware as JSON data, by group; None for what is not there or cannot be told.

    Imports torch, which alone knows its build and devices; one that cannot be imported is reported, not raised.
    """
    found = versions()
    core, extras = _requirements()
    return {
        "qstar": {"version": found["qstar"], "git": found["git"], "from": str(Path(__file__).parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "system": {
            "os": platform.platform(),
            "cpu": _cpu("model name") or platform.processor() or platform.machine(),
            "cpu_flags": [flag for flag in CPU_FLAGS if flag in (_cpu("flags") or _cpu("Features") or "").split()],
            "cores": os.cpu_count(),
            "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": found["memory_gib"],
            "gpus": found["gpus"],
        },
        "torch": _torch(),
        "libraries": {name: _version(name) for name in core},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in extras.items()},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """`environment` as text, a line for each fact."""
    text = []
    for group, facts in found.items():
        text.append(f"{group}:")
        for name, fact in facts.items():
            if isinstance(fact, dict):
                missing = [package for package, version in fact.items() if version is None]
                fact = f"missing {', '.join(missing)}" if missing else ", ".join(f"{p} {v}" for p, v in fact.items())
            elif isinstance(fact, list):
                fact = " ".join(map(str, fact)) or None
            text.append(f"  {name}: {'none' if fact is None else fact}")
    return text


def _requirements() -> tuple[list[str], dict[str, list[str]]]:
    """Names of the packages that qstar needs, and those of each extra, from its own metadata."""
    try:
        requirements = importlib.metadata.requires("qstar") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    core: list[str] = []
    extras: dict[str, list[str]] = {}
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        (extras.setdefault(extra[1], []) if extra else core).append(name)
    return core, extras


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu(field: str) -> str | None:
    """A field of the first processor in Linux's list of them."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(rf"^{field}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:  # a missing or broken shared library
        return {"version": _version("torch"), "error": " ".join(str(error).split())[:300]}
    cuda = torch.cuda.is_available()
    return {
        "version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "devices": ["cpu"]
        + [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count() if cuda else 0)]
        + ["mps"] * torch.backends.mps.is_available(),
    }
