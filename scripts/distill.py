"""Train the student on verified traces, and its gold-only baseline.

python scripts/distill.py configs/gsm8k-smollm2.yaml
accelerate launch scripts/distill.py configs/gsm8k-smollm2.yaml
"""

import sys

from qstar.cli import main

if __name__ == "__main__":
    sys.exit(main(["distill", *sys.argv[1:]]))
