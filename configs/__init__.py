"""Shipped configs, one file per system."""
