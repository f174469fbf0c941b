"""qstar: step-level reinforcement learning with A* search for grade-school math."""

TYPE_CHECKING = False  # as `typing.TYPE_CHECKING`, without the import
if TYPE_CHECKING:
    from qstar.solver import Solver

__version__ = "0.1.0"
__all__ = ["Solver"]


def __getattr__(name: str) -> object:
    # `import qstar` stays light; `from qstar import Solver` loads what a solver needs.
    if name == "Solver":
        from qstar.solver import Solver

        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
