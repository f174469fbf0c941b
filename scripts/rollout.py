"""Sample and grade solutions of the policy.

python scripts/rollout.py configs/gsm8k-smollm2.yaml
accelerate launch scripts/rollout.py configs/gsm8k-smollm2.yaml
"""

import sys

from qstar.cli import main

if __name__ == "__main__":
    sys.exit(main(["rollout", *sys.argv[1:]]))
