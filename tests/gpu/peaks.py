"""What GPUs can do at most, by their makers' data sheets (dense matrix products, TFLOP/s), and what this one does."""

import torch

from tests.gpu.record import Task

DATA_SHEETS: dict[str, dict[str, float]] = {
    "H200": {"float32": 67, "tf32": 494, "bf16": 989},
    "H100 PCIe": {"float32": 51, "tf32": 378, "bf16": 756},
    "H100": {"float32": 67, "tf32": 494, "bf16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "bf16": 312},
    "L40S": {"float32": 91.6, "tf32": 183, "bf16": 362},
    "L4": {"float32": 30.3, "tf32": 60, "bf16": 121},
    "A10": {"float32": 31.2, "tf32": 62.5, "bf16": 125},
    "RTX 4090": {"float32": 82.6, "tf32": 82.6, "bf16": 165},
    "T4": {"float32": 8.1},
}
"""A part of the name that torch gives -> precision -> peak; the first that fits counts."""


def set_precision(precision: str) -> None:
    """Let float32 products and convolutions be exact, or (``tf32``) as fast as the device can."""
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def data_sheet(precision: str) -> float | None:
    """Return the data sheet's TFLOP/s for the GPU here, None where it is not in the table."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return next((peaks.get(precision) for known, peaks in DATA_SHEETS.items() if known in name), None)


def measured_peaks(task: Task) -> dict[str, float]:
    """Measure the TFLOP/s of a large matrix product in each precision."""
    size, found = task.sizes.matmul, {}
    for precision in task.precisions:
        set_precision(precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        left, right = torch.randn(2, size, size, device=task.device).to(dtype)
        out = torch.empty_like(left)
        seconds = task.seconds(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), repeats=5)
        found[precision] = 2 * size**3 / seconds / 1e12
    set_precision("float32")
    return found
