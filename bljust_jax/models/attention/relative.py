"""Relative positions of Transformer-XL: sinusoids of distances, and position scores in chunks."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

CHUNK, MOST_CHUNKS = 40, 16  # queries per chunk at least; chunks at most


def relative_positions(first: int, last: int, dim: int) -> Float[np.ndarray, "r d"]:
    """Sinusoids of the distances first, first - 1, ..., last from query to key, one row each.

    The row of distance r holds sin(r w) and cos(r w), w = 10000^(-2i/D), in float64 (Dai et al.,
    Transformer-XL, ACL 2019, appendix B).
    """
    distance = np.arange(first, last - 1, -1, dtype=np.float64)
    angle = distance[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)[None, :]
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)


def skew(scores: Float[Array, "*n q r"], first: int, keys: int) -> Float[Array, "*n q k"]:
    """Scores by distance to scores by key: out[i, j] = scores[i, first + j - i], first <= Q.

    Implemented as a reshape: in rows shorter by one, a diagonal becomes a column. Entries whose
    column lies outside `scores` are undefined and must be masked.
    """
    *lead, queries, columns = scores.shape
    if columns <= keys:
        scores = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(0, keys + 1 - columns)])
        columns = keys + 1
    flat = scores.reshape(*lead, queries * columns)[..., first : first + queries * (columns - 1)]
    return flat.reshape(*lead, queries, columns - 1)[..., :keys]


def chunk_size(frames: int) -> int:
    """Queries per chunk C of `position_scores`: about 40, of at most 16 equal chunks."""
    return -(-frames // min(max(frames // CHUNK, 1), MOST_CHUNKS))


def position_scores(
    query: Float[Array, "b t h s"], position: Float[Array, "r h s"], chunk: int
) -> Float[Array, "b h t t"]:
    """out[b, h, i, j] = query[b, i, h] . position[i - j, h].

    `position` has the distances n C - 1, ..., -T, one row each, for n = ceil(T / C) chunks of
    C = `chunk` queries. A chunk multiplies the T + C rows that its queries need, not all distances:
    T (T + C) products instead of 2 T^2.
    """
    batch, frames, heads, size = query.shape
    count = -(-frames // chunk)
    query = jnp.pad(query, ((0, 0), (0, count * chunk - frames), (0, 0), (0, 0)))
    query = query.reshape(batch, count, chunk, heads, size)
    starts = range((count - 1) * chunk, -1, -chunk)
    rows = jnp.stack([position[start : start + frames + chunk] for start in starts])
    by_distance = jnp.einsum("bnchs,nrhs->hnbcr", query, rows)
    scores = skew(by_distance, chunk - 1, frames).transpose(2, 0, 1, 3, 4)
    return scores.reshape(batch, heads, count * chunk, frames)[:, :, :frames]
