"""The ratio r = original : augmented of every training batch; torch-free."""

import math
from dataclasses import dataclass

from raystitch.errors import UserError


@dataclass(frozen=True)
class Ratio:
    """Original : augmented, counted in original against synthetic transitions (windows for sequence models)."""

    original: float
    augmented: float

    def __post_init__(self) -> None:
        for share in (self.original, self.augmented):
            if not (math.isfinite(share) and share >= 0):
                raise UserError(f"ratio {self}: shares must be finite and >= 0")
        if self.original + self.augmented == 0:
            raise UserError("ratio 0:0 leaves nothing to train on; use for example 1:0 or 1:1")

    def __str__(self) -> str:
        return f"{self.original:g}:{self.augmented:g}"

    def counts(self, batch_size: int) -> tuple[int, int]:
        """Return the (original, augmented) rows of every batch: rounded half up, at least one of a part with a share.

        Raises:
            UserError: when the batch cannot hold a row of each part.
        """
        if self.original == 0 or self.augmented == 0:
            return (batch_size, 0) if self.augmented == 0 else (0, batch_size)
        if batch_size < 2:
            raise UserError(f"batch_size={batch_size} cannot hold both parts of ratio {self}; use at least 2")
        augmented = math.floor(batch_size * self.augmented / (self.original + self.augmented) + 0.5)
        augmented = min(max(augmented, 1), batch_size - 1)
        return batch_size - augmented, augmented


def parse_ratio(text: str | Ratio) -> Ratio:
    """Read a ratio such as ``"2:1"``.

    Raises:
        UserError: for anything but two numbers >= 0, not both zero.
    """
    if isinstance(text, Ratio):
        return text
    try:
        original, augmented = (float(part) for part in text.split(":"))
    except ValueError:
        raise UserError(f"ratio={text!r}: use ORIGINAL:AUGMENTED, for example 1:1, 2:1 or 1:0") from None
    return Ratio(original, augmented)
