"""Closed forms that tests compare the package with."""

import numpy as np


def expected_share(length, probability, span):
    """Expected masked share of `masking.start_spans` over the valid frames of an utterance:
    mean over t < length of 1 - (1 - probability)^min(t + 1, span); 0 for an empty one."""
    starts = np.minimum(np.arange(length) + 1, span)
    return float(np.sum(1 - (1 - probability) ** starts) / max(length, 1))


def receptive_field(factor=4):
    """(stride, left, right) of `Subsampling` in feature frames: output t depends on inputs
    factor t +- (factor - 1)."""
    return factor, factor - 1, factor - 1
