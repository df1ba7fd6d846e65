"""Settings of the trainers and of evaluation; torch-free."""

from dataclasses import dataclass
from typing import Any, Literal

DATA_MODES = ("original", "stitched", "joined", "weighted", "duplicated")
"""What the augmented part of a batch is: nothing; generated bridges; nearest real pairs concatenated without a bridge;
the original resampled by return; the original again."""

MEMORY_GIB = 1.0
"""Training data above this size are mapped from files instead of held in memory."""

DataMode = Literal["original", "stitched", "joined", "weighted", "duplicated"]


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {name}={getattr(config, name)}")


def _unit(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {name}={getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig:
    """TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860); the defaults are the paper's.

    Attributes:
        alpha: strength of Q against cloning, lambda = alpha / mean |Q|.
        policy_noise, noise_clip: of the smoothed target action, in units of half the action range.
        policy_delay: critic updates per actor and target update.
        synthetic: stitched data enters as ``bridges`` (generated transitions only) or as whole ``episodes``, where the
            ratio then counts their real rows too.
        uniform_over: of the augmented part every transition is as likely as any other, or every bridge (or episode).
        precision: of the large products; ``auto`` takes bf16 where the machine multiplies it faster.
    """

    train_steps: int = 50_000
    batch_size: int = 256
    hidden: int = 256
    num_layers: int = 2
    learning_rate: float = 3e-4
    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    policy_delay: int = 2
    synthetic: Literal["bridges", "episodes"] = "bridges"
    uniform_over: Literal["transitions", "bridges"] = "transitions"
    precision: Literal["auto", "float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        _positive(self, "train_steps", "batch_size", "hidden", "num_layers", "learning_rate", "alpha", "policy_delay")
        _unit(self, "gamma", "policy_noise")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1], got tau={self.tau}")
        if self.noise_clip < 0:
            raise ValueError(f"noise_clip must be >= 0, got noise_clip={self.noise_clip}")


@dataclass(frozen=True, kw_only=True)
class DTConfig:
    """Decision Transformer (Chen et al. 2021, arXiv 2106.01345); the defaults are the paper's for MuJoCo.

    Attributes:
        context: time steps per window (K), three tokens each.
        warmup_fraction: share of the steps over which the learning rate rises linearly (10k of 100k in the paper).
        decay: what the learning rate does after that, down to ``final_fraction`` of its peak.
        grad_clip: largest gradient norm.
        uniform_over: of the augmented part every window is as likely as any other, or every episode.
    """

    train_steps: int = 50_000
    batch_size: int = 64
    context: int = 20
    width: int = 128
    num_layers: int = 3
    num_heads: int = 1
    dropout: float = 0.1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    warmup_fraction: float = 0.1
    decay: Literal["none", "linear", "cosine"] = "none"
    final_fraction: float = 0.0
    grad_clip: float = 0.25
    uniform_over: Literal["transitions", "bridges"] = "transitions"

    def __post_init__(self) -> None:
        _positive(self, "train_steps", "batch_size", "context", "width", "num_layers", "num_heads")
        _positive(self, "learning_rate", "grad_clip")
        _unit(self, "dropout", "warmup_fraction", "final_fraction")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, got weight_decay={self.weight_decay}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be divisible by num_heads={self.num_heads}, got width={self.width}")


@dataclass(frozen=True, kw_only=True)
class BCConfig:
    """Behaviour cloning; ``top_fraction=0.1`` is the usual "10 % BC" on the episodes with the highest returns.

    Attributes:
        top_fraction: share of episodes kept, by return, of the original and of the augmented part each.
        synthetic: stitched data enters as ``bridges`` (generated transitions only) or as whole ``episodes``, where the
            ratio then counts their real rows too.
        uniform_over: of the augmented part every transition is as likely as any other, or every bridge (or episode).
        precision: of the large products; ``auto`` takes bf16 where the machine multiplies it faster.
    """

    train_steps: int = 50_000
    batch_size: int = 256
    hidden: int = 256
    num_layers: int = 2
    learning_rate: float = 3e-4
    top_fraction: float = 1.0
    synthetic: Literal["bridges", "episodes"] = "bridges"
    uniform_over: Literal["transitions", "bridges"] = "transitions"
    precision: Literal["auto", "float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        _positive(self, "train_steps", "batch_size", "hidden", "num_layers", "learning_rate")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must be in (0, 1], got top_fraction={self.top_fraction}")


AlgorithmConfig = TD3BCConfig | DTConfig | BCConfig

ALGORITHM_CONFIGS: dict[str, type[TD3BCConfig] | type[DTConfig] | type[BCConfig]] = {
    "td3bc": TD3BCConfig,
    "dt": DTConfig,
    "bc": BCConfig,
}


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation in the real environment.

    Attributes:
        num_episodes, num_envs: episodes of the final evaluation, and how many run side by side.
        target_returns: returns the Decision Transformer is asked for, in raw units, each evaluated and reported on its
            own; the first is the headline. Empty: the largest return of the original data.
        every: gradient steps between evaluations during training, 0 for none. They use other episodes than the final.
        every_episodes: episodes of each of those.
    """

    num_episodes: int = 50
    num_envs: int = 25
    target_returns: tuple[float, ...] = ()
    every: int = 0
    every_episodes: int = 10

    def __post_init__(self) -> None:
        _positive(self, "num_episodes", "num_envs", "every_episodes")
        if self.every < 0:
            raise ValueError(f"every must be >= 0, got every={self.every}")
