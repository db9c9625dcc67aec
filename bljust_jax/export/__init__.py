"""Weights out to PyTorch and in from it, with a certificate that both sides compute the same.

A run becomes a folder that `transformers` loads by itself, where one of its classes fits
(`huggingface`), else safetensors beside one file of PyTorch (`torch_module`). `pretrained` reads
such folders, and those of others, into a run.
"""
