"""Tallies made up for tests."""

import numpy as np

from iterinf.evaluation.tally import NUM_BINS, Details, Tally


def make_tally(confusions: np.ndarray, seed: int = 0) -> Tally:
    """A tally of these matrices [n k k]; its other numbers are drawn."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(9)
    n = len(confusions)
    details = Details(
        rng.uniform(1, 9, n),
        rng.uniform(0, 5, (n, NUM_BINS, 3)),
        rng.integers(1, 9, n),
        truth.integers(1, 9, n),
    )
    return Tally(confusions, rng.uniform(0, 1, n), details)
