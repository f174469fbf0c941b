"""qstar: step-level reinforcement learning with A* search for grade-school math."""

__version__ = "0.1.0"
