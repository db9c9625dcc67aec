"""Bilevel training: levels, combiners, phases, optimizer and the training step."""
