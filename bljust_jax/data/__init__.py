"""Corpora, batch plans and streams of batches; imports no jax."""
