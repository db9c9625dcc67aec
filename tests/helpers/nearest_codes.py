"""The nearest codes of a random-projection quantizer, by brute force in float64."""

import numpy as np


def brute_force(frozen, x):
    """argmin of the distance between unit vectors, in float64."""
    projection, codebook = (np.asarray(frozen[k], np.float64) for k in ("projection", "codebook"))
    out = np.zeros((*x.shape[:2], len(codebook)), int)
    for b, t, c in np.ndindex(*out.shape):
        vector = np.asarray(x[b, t], np.float64) @ projection[c]
        codes = codebook[c] / np.linalg.norm(codebook[c], axis=-1, keepdims=True)
        distance = np.linalg.norm(vector / np.linalg.norm(vector) - codes, axis=-1)
        out[b, t, c] = distance.argmin()
    return out
