"""Tasks: a head, its objective, its decoder and its scores."""
