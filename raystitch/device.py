"""One place that turns ``device: auto`` into a torch device."""

import torch

from raystitch.errors import UserError


def resolve_device(device: str = "auto") -> torch.device:
    """``auto`` takes the first CUDA device when there is one, else the CPU.

    Raises:
        UserError: for a device this machine does not have or torch does not know.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device={device!r} is not a torch device; use auto, cpu or cuda[:N]") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device={device!r} was asked for, but torch sees no CUDA device here; use --device cpu")
    return resolved
