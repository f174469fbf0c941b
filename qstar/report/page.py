"""A self-contained HTML page: style, script and data inside one file that loads nothing and runs nothing else.

Everything that comes from models or problems reaches the page in one of two ways: as text through `html.escape`, or as
JSON in a data block in which every "<" is written \\u003c, so that no text can end the block. The content security
policy allows exactly the page's own style and script, by their SHA-256, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from qstar.runs.files import write_text


def write_page(
    path: Path, title: str, body: str, *, styles: tuple[str, ...], script: str | None = None, data: Mapping[str, Any]
) -> None:
    """Write a page whole or not at all, and its folder if needed.

    body: HTML, already escaped. styles, script: names of files in this package. data: id -> JSON data of a data block.
    """
    style = "\n".join(asset(name) for name in styles)
    code = asset(script) if script else ""
    blocks = "\n".join(
        f'<script type="application/json" id="{escape(name)}">{script_json(value)}</script>'
        for name, value in data.items()
    )
    parts = {
        "title": escape(title),
        "policy": "; ".join(
            [
                "default-src 'none'",
                f"style-src 'sha256-{digest(style)}'",
                f"script-src 'sha256-{digest(code)}'" if code else "script-src 'none'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        "style": style,
        "body": body,
        "data": blocks,
        "script": f"<script>{code}</script>" if code else "",
    }
    # One pass, so that a part that happens to contain a mark is left as it is.
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, page)


def script_json(data: Any) -> str:
    """Compact ASCII JSON that is safe inside a script element. Raises ValueError for a number that is not finite."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def digest(text: str) -> str:
    """SHA-256 in base64, as a content security policy names an inline style or script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def asset(name: str) -> str:
    """A text file of this package."""
    return (resources.files("qstar.report") / name).read_text(encoding="utf-8")
