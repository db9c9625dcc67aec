"""Data doctor: measure all audio of a corpus once, check audio, texts and splits, propose cures."""
