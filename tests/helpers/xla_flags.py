"""XLA's options for programs that are compiled more often than they are run."""

import importlib.metadata

# Same operations on same types, in slower machine code. Compiling one gradient of a small
# Conformer: 9.5 CPU seconds without, 3.5 with the first, 1.2 with the second, 1.0 with the third.
OPTIONS = ("--xla_backend_optimization_level=0",)
# fusions lowered without MLIR, one LLVM module per program; jaxlib 0.12 knows no such option, and
# XLA ends the process at an unknown one
OPTIONS_OF = {
    "0.10": ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")
}


def quick_to_compile() -> str:
    """`XLA_FLAGS` for the CPU backend of this jaxlib."""
    minor, _, _ = importlib.metadata.version("jaxlib").rpartition(".")
    return " ".join((*OPTIONS, *OPTIONS_OF.get(minor, ())))
