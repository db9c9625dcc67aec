"""Comparisons of methods: a grid of runs of equal compute, tuning, rows of results, statistics."""
