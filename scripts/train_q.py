"""Fit the Q-value head to the outcomes of the rollouts.

python scripts/train_q.py configs/gsm8k-smollm2.yaml
accelerate launch scripts/train_q.py configs/gsm8k-smollm2.yaml
"""

import sys

from qstar.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-q", *sys.argv[1:]]))
