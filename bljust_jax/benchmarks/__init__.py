"""Benchmarks against public peers (`bljust_jax.bench`) and ahead-of-time compilation (`aot`)."""
