"""Corpus layouts, one reader per file: `digits:...` is read by `readers/digits.py`."""
