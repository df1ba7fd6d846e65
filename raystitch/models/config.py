"""Settings of everything that is fitted; torch-free."""

from dataclasses import dataclass, field
from typing import Literal

HEADS = ("dynamics", "inverse", "reward", "termination", "value", "embedding")
"""The models beside the diffusion model, in the order in which they are made and fitted. Each is a field of
``FitConfig`` and of ``models.heads.Heads``, and an attribute and a file of the bundle."""
PARTS = ("diffusion", *HEADS)
"""All models of a bundle, in the order in which they are fitted."""


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """The state-window diffusion model (DiffStitch section 4.1, Eq. 1-3 as changed in docs/method).

    Attributes:
        horizon: states per window (H).
        width: channels of the U-Net at full resolution.
        multipliers: channels at each resolution, in units of ``width``.
        num_blocks: residual blocks per resolution, on the way down, in the middle and on the way up.
        num_diffusion_steps: K, steps of the cosine schedule the network is trained on.
        prediction: what the network predicts: the clean states or the noise.
        gap_min, gap_max: gaps (generated states) that training masks and stitching draw from.
        prefix_max: most real states revealed before a gap in training (1 .. prefix_max).
        difference_weight: weight of the squared error of consecutive differences s_{t+1} - s_t in the loss on clean
            states; transitions come out truer than with the states' own error alone. Not used for noise.
        mask_stitch: share of training rows masked as prefix + suffix.
        mask_prefix: share masked as prefix only; the rest is masked at random.
        return_dropout: the network is also told the discounted return from the window's first state on, except in this
            share of the rows (classifier-free guidance, Ho & Salimans 2022); None for a network without that input.
    """

    horizon: int = 32
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    num_blocks: int = 1
    num_diffusion_steps: int = 100
    prediction: Literal["clean", "noise"] = "clean"
    difference_weight: float = 4.0
    gap_min: int = 4
    gap_max: int = 24
    prefix_max: int = 4
    mask_stitch: float = 0.75
    mask_prefix: float = 0.15
    train_steps: int = 6000
    batch_size: int = 64
    learning_rate: float = 1e-3
    ema_decay: float = 0.995
    return_dropout: float | None = None

    def __post_init__(self) -> None:
        factor = 2 ** (len(self.multipliers) - 1)
        if self.horizon % factor:
            raise ValueError(
                f"horizon must be divisible by 2**num_downsamplings = {factor}, got horizon={self.horizon}"
            )
        if not 1 <= self.gap_min <= self.gap_max:
            raise ValueError(f"need 1 <= gap_min <= gap_max, got gap_min={self.gap_min}, gap_max={self.gap_max}")
        if self.gap_max + 2 > self.horizon:
            raise ValueError(f"gap_max + 2 must fit the horizon, got gap_max={self.gap_max}, horizon={self.horizon}")
        if not 1 <= self.prefix_max < self.horizon:
            raise ValueError(f"prefix_max must be in 1..horizon-1, got prefix_max={self.prefix_max}")
        for name in ("mask_stitch", "mask_prefix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {name}={getattr(self, name)}")
        if self.mask_stitch + self.mask_prefix > 1:
            raise ValueError("mask_stitch + mask_prefix must be at most 1")
        if min(self.train_steps, self.batch_size, self.width, self.num_blocks, self.num_diffusion_steps) < 1:
            raise ValueError("train_steps, batch_size, width, num_blocks and num_diffusion_steps must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got learning_rate={self.learning_rate}")
        if not self.difference_weight >= 0:
            raise ValueError(f"difference_weight must be >= 0, got difference_weight={self.difference_weight}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got ema_decay={self.ema_decay}")
        if self.return_dropout is not None and not 0 < self.return_dropout < 1:
            raise ValueError(f"return_dropout must be in (0, 1) or null, got return_dropout={self.return_dropout}")


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """One stacked ensemble of MLPs (dynamics, inverse dynamics, reward, termination, value)."""

    num_members: int = 2
    hidden: int = 128
    num_layers: int = 2
    train_steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("num_members", "hidden", "num_layers", "train_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got learning_rate={self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The temporal-distance embedding phi: -||phi(s) - phi(g)|| estimates minus the steps from s to g.

    Attributes:
        size: dimensions of phi.
        expectile: below 0.5 leans towards the shortest recorded time between two states.
    """

    size: int = 16
    hidden: int = 128
    num_layers: int = 2
    expectile: float = 0.1
    train_steps: int = 3000
    batch_size: int = 512
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("size", "hidden", "num_layers", "train_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile must be in (0, 1), got expectile={self.expectile}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got learning_rate={self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Everything ``raystitch fit`` needs.

    Attributes:
        gamma: discount of returns and values.
        holdout_fraction: share of whole episodes that no model is fitted on; delta is calibrated on them.
        num_judges: dynamics members kept for qualification; the others serve gap selection and guidance only.
        reward_inputs: ``sas`` for r(s, a, s'), ``sa`` for the paper's r(s, a).
        diffusion, dynamics, inverse, reward, termination, value, embedding: size and training of each part.
        calibration_windows: real held-out windows that the quantiles of delta are measured on.
        precision: of the forward passes in training; ``auto`` takes bf16 where the machine multiplies it faster.

    Raises:
        ValueError: for a value out of range, quoting it.

    Examples:
        >>> from dataclasses import replace
        >>> longer = replace(rs.FitConfig(), dynamics=replace(rs.FitConfig().dynamics, train_steps=80000))
        >>> longer.dynamics.num_members, longer.dynamics.train_steps
        (4, 80000)
        >>> rs.FitConfig(gamma=2)
        Traceback (most recent call last):
        ValueError: gamma must be in (0, 1], got gamma=2
    """

    seed: int = 0
    gamma: float = 0.99
    holdout_fraction: float = 0.1
    num_judges: int = 2
    reward_inputs: Literal["sas", "sa"] = "sas"
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    dynamics: HeadConfig = field(
        default_factory=lambda: HeadConfig(
            num_members=4, hidden=256, num_layers=4, train_steps=40000, learning_rate=8e-3
        )
    )
    inverse: HeadConfig = field(
        default_factory=lambda: HeadConfig(hidden=256, num_layers=3, train_steps=8000, learning_rate=4e-3)
    )
    reward: HeadConfig = field(default_factory=lambda: HeadConfig(num_layers=3))
    termination: HeadConfig = field(default_factory=lambda: HeadConfig(num_members=1, train_steps=2000))
    value: HeadConfig = field(default_factory=lambda: HeadConfig(num_members=1, train_steps=2000))
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    calibration_windows: int = 2000
    precision: Literal["auto", "float32", "bf16"] = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got gamma={self.gamma}")
        if not 0 < self.holdout_fraction < 1:
            raise ValueError(f"holdout_fraction must be in (0, 1), got holdout_fraction={self.holdout_fraction}")
        if not 1 <= self.num_judges < self.dynamics.num_members:
            raise ValueError(
                f"num_judges must be in 1..dynamics.num_members - 1 = {self.dynamics.num_members - 1}, "
                f"got num_judges={self.num_judges}"
            )
        if self.calibration_windows < 1:
            raise ValueError(f"calibration_windows must be at least 1, got {self.calibration_windows}")

    @property
    def heads(self) -> dict[str, HeadConfig | EmbeddingConfig]:
        """Size and training of each of ``HEADS``."""
        return {name: getattr(self, name) for name in HEADS}
