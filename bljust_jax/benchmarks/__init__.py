"""Measurements against peers, interleaved in one process: `python -m bljust_jax.bench --help`."""
