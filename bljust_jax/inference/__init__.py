"""Load trained runs, transcribe audio and score hypotheses."""
