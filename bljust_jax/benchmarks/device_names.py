"""Names and XLA flags of the items of `bench device`, in the order in which they are measured.

What each measures is in `device_items`, by the first word of its name. No jax here.
"""

from typing import NamedTuple


class Item(NamedTuple):
    """One measurement: "kind/argument/..." and the XLA flags of its process."""

    name: str
    flags: str = ""

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def arguments(self) -> list[str]:
        return self.name.split("/")[1:]


FRAMES = ("400", "350", "626", "351")
DETERMINISTIC = "--xla_gpu_exclude_nondeterministic_ops=true"
KERNELS = ("layer norm", "depthwise", "feed-forward", "convolution module")
KERNELS += ("relative xla", "relative cudnn", "rope xla", "rope cudnn", "conv2d", "separable")
POLICIES = ("none xla", "dots xla", "full xla", "names xla", "names cudnn", "names rope cudnn")
STEPS = (
    *("CTC xla", "joint xla", "CTC cudnn", "joint cudnn"),
    *("CTC rope fast cudnn", "joint rope fast cudnn", "CTC rope fast xla", "joint rope fast xla"),
)
PEERS = ("torch", "torch compiled", "speechbrain")
FLAGS = {
    "no triton": "--xla_gpu_enable_triton_gemm=false",
    "loops in command buffers": "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUDNN,WHILE",
    "cudnn fusions": "--xla_gpu_cudnn_gemm_fusion_level=1",
    "deterministic": DETERMINISTIC,
}
ITEMS = (
    Item("copy"),
    Item("product"),
    *(Item(f"attention/{form}/{frames}") for form in ("cudnn", "xla") for frames in FRAMES),
    *(Item(f"kernel/{name}") for name in KERNELS),
    *(Item(f"blocks/{name}") for name in POLICIES),
    *(Item(f"step/{name}") for name in STEPS),
    *(Item(f"peer/{name}") for name in PEERS),
    Item("trace/joint cudnn"),
    Item("ctc"),
    *(Item(f"attention/cudnn/{frames}/again", DETERMINISTIC) for frames in FRAMES[:2]),
    *(Item(f"step/CTC cudnn/{name}", flags) for name, flags in FLAGS.items()),
)
