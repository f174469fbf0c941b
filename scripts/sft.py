"""Train the policy on gold solutions.

python scripts/sft.py configs/gsm8k-smollm2.yaml
accelerate launch scripts/sft.py configs/gsm8k-smollm2.yaml
"""

import sys

from qstar.cli import main

if __name__ == "__main__":
    sys.exit(main(["sft", *sys.argv[1:]]))
