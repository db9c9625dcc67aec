"""Names of array types that recur in signatures: B utterances, T frames or U labels, padded.

A dimension of the same letter has the same size within one signature.
"""

from jaxtyping import Array, Bool, Float, Int, Key

Lengths = Int[Array, "b"]  # valid entries of each row, the first ones
Mask = Bool[Array, "b t"]  # True = valid
Features = Float[Array, "b t m"]  # of M mel bands
Frames = Float[Array, "b t d"]  # hidden frames of width D
Grid = Float[Array, "b t f c"]  # of F bands and C channels
Logits = Float[Array, "b t k"]  # of K classes
Labels = Int[Array, "b u"]
Scalar = Float[Array, ""]
Rng = Key[Array, ""]
RowKeys = Key[Array, "b"]  # a key per utterance
