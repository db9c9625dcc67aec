"""Waveform augmentation: speed, joining, reverberation, noise, babble, volume, band and codec."""
