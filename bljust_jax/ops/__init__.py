"""CTC, log-mel features, SpecAugment, masking and quantizers."""
