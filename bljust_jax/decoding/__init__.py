"""Greedy and beam search decoding, n-gram language models."""
