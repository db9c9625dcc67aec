"""Convert models to PyTorch and `transformers`, and read pretrained ones, with a parity check.

`hf_folder` writes a run as a folder for transformers if one of its classes fits, else
`torch_folder` writes safetensors beside one PyTorch file. `pretrained` reads such folders, and
those of others.
"""
