"""Metrics, progress, goodput, FLOPs and profiles of a run."""
