"""Path features: log-probabilities and checks of the path, in a fixed order."""

from __future__ import annotations

from qstar.types import Step
from qstar.value.features import MAX_COUNT, PATH_FEATURES, path_features

QUESTION = "Tom has 12 apples and buys 3 bags of 5. How many has he?"


def test_log_probabilities_come_first_then_the_checks() -> None:
    steps = (Step("3 * 5 = 15\n", (), -1.0), Step("15 + 99 = 114\n", (), -4.0))
    assert path_features(QUESTION, steps) == (-5.0, -4.0, -4.0, 2, 0, 1, 1, 1, 0, 1, 0)


def test_an_empty_path_and_a_long_one_stay_in_range() -> None:
    assert path_features(QUESTION, ()) == (0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0)
    many = tuple(Step(f"{n} + 1 = {n + 1}\n", (), -0.5) for n in range(100, 200, 2))
    features = path_features(QUESTION, many)
    assert len(features) == PATH_FEATURES
    assert max(features[3:]) == MAX_COUNT
