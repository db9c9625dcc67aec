"""The training loop and everything before its first step."""
