"""Bilevel joint training of speech recognisers on labelled and unlabelled audio at once, in JAX."""

__version__ = "0.1.0"
