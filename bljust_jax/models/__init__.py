"""Encoders, decoders and heads as Flax modules behind plain functions."""
