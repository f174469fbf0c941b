"""Loss weights that count rare tokens more: the frequency-aware cross-entropy of Jiang et al. 2019.

Objective (arXiv 1902.09191, the "pre weight" form of equation 10, with the frequencies of the training targets):

    RF_i = count(i) / sum_j count(j)        w_i = a RF_i + 1        a = -1 / max_j RF_j
    L    = -sum_t w(y_t) log pi(y_t | y_<t)

The most frequent token gets the smallest weight, a token that is almost never seen a weight near 1, and all weights
are then scaled to a mean of 1.

Departures: the counts are taken once, over the targets of the data set, not updated during training; the mean of 1 is
over the target tokens and not over the vocabulary, so that a token counts as much on average as without weights and
the learning rate keeps its meaning; the most frequent token keeps the weight FLOOR instead of 0, because here it ends
the steps or separates the words and a model from nothing would never learn it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

FLOOR = 0.1
"""Weight of the most frequent token relative to that of one never seen."""


def frequency_weights(targets: Iterable[int]) -> dict[int, float]:
    """Weight by token id for the ids in `targets`, the tokens that carry loss; their mean over `targets` is 1."""
    counts = Counter(targets)
    if not counts:
        return {}
    most = max(counts.values())
    raw = {token: 1.0 - (1.0 - FLOOR) * count / most for token, count in counts.items()}
    mean = sum(raw[token] * count for token, count in counts.items()) / counts.total()
    return {token: weight / mean for token, weight in raw.items()}
