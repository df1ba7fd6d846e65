"""Settings of the trainers, of their data and of evaluation; torch-free.

An algorithm's settings fit ``TrainerSettings``. They may also fit ``CountsFlops``: for the estimate of a run's cost.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Protocol, get_args, get_type_hints, runtime_checkable

from raystitch.errors import check_choice
from raystitch.shaping.config import ShapingConfig, WeightConfig

Kind = Literal["transitions", "sequences"]
"""What the batches of an algorithm are."""

UniformOver = Literal["transitions", "bridges"]
"""What is equally likely in the augmented part: every transition, or every bridge."""

DataMode = Literal["original", "stitched", "joined", "weighted", "duplicated"]
"""The augmented part: nothing; generated bridges; nearest real pairs without a bridge; the original weighted; again."""

DATA_MODES: tuple[str, ...] = get_args(DataMode)

MEMORY_GIB = 1.0
"""Training data above this size are mapped from files instead of held in memory."""

Synthetic = Literal["bridges", "episodes", "tails"]
"""The part of a stitched episode that enters a batch of transitions: the generated bridge; everything; the bridge and
what comes after it, without the prefix that the original data has already."""


@dataclass(frozen=True, kw_only=True)
class DataNeeds:
    """Requirements of an algorithm on its training data.

    Attributes:
        synthetic: what of stitched episodes enters batches of transitions.
        uniform_over: at equal weights, of the augmented part every transition is as likely as any other, or every
            bridge (or episode).
        top_fraction: share of the episodes kept, by return, of the original and of the augmented part each.
        context: time steps per window; None for batches of transitions.
        prefix: most steps that are kept of a stitched or joined episode before it leaves its source; None for all.
        decoupled: the policy alone learns from the weighted part, the rest from the same part unweighted.
    """

    synthetic: Synthetic = "bridges"
    uniform_over: UniformOver = "transitions"
    top_fraction: float = 1.0
    prefix: int | None = None
    context: int | None = None
    decoupled: bool = False


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Settings of the training data that ``build_data`` makes.

    Attributes:
        kind: batches of transitions or of windows. Windows are of whole stitched episodes, whatever ``synthetic`` says.
        data: what the augmented part is.
        synthetic, uniform_over, top_fraction, prefix, decoupled: as in ``DataNeeds``.
        shaping: weights of the augmented part's episodes, rewards, returns-to-go.
        device: where batches are wanted, ``auto`` for a GPU where there is one.
        memory_gib: larger training data are mapped from files, not in memory or on the device; batches are the same.
    """

    kind: Kind
    data: DataMode = "original"
    synthetic: Synthetic = "bridges"
    uniform_over: UniformOver = "transitions"
    top_fraction: float = 1.0
    prefix: int | None = None
    decoupled: bool = False
    shaping: ShapingConfig = field(default_factory=ShapingConfig)
    device: str = "auto"
    memory_gib: float = MEMORY_GIB

    @property
    def weights(self) -> WeightConfig:
        """Weights of the augmented part's episodes; ``weighted`` data with no other weights are weighted by return."""
        weights = self.shaping.weights
        return replace(weights, name="rw") if self.data == "weighted" and weights.name == "uniform" else weights


class TrainerSettings(Protocol):
    """Settings of an algorithm, a dataclass, as the training loop reads them."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def train_steps(self) -> int:
        """Gradient steps."""
        ...

    @property
    def batch_size(self) -> int:
        """Transitions or windows per batch."""
        ...

    def data_needs(self) -> DataNeeds:
        """Return what the algorithm asks of its training data."""
        ...


@runtime_checkable
class CountsFlops(Protocol):
    """Settings that say what a gradient step computes."""

    @property
    def flops(self) -> float:
        """Floating point operations of one gradient step, roughly."""
        ...


LATER: Mapping[str, bool] = {"later": True}
"""Marks a setting that trials of older versions lack: where it has its default it is no part of their identity."""


def settings_json(config: Any) -> dict[str, Any]:
    """Return the settings of an algorithm as part of a trial's identity."""
    silent = {at.name for at in fields(config) if at.metadata.get("later") and getattr(config, at.name) == at.default}
    return {name: value for name, value in asdict(config).items() if name not in silent}


def flops_of(config: object) -> float | None:
    """Return roughly what one gradient step computes; None where the settings do not say."""
    return config.flops if isinstance(config, CountsFlops) else None


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {name}={getattr(config, name)}")


def _unit(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be in [0, 1), got {name}={getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """Settings that the algorithms on transitions have in common.

    Attributes:
        synthetic: what of stitched episodes enters; with ``tails`` and ``episodes`` the ratio counts real rows too.
        uniform_over: of the augmented part every transition is as likely as any other, or every bridge (or episode).
        precision: of the large products; ``auto`` takes bf16 where the machine multiplies it faster.
    """

    train_steps: int = 50_000
    batch_size: int = 256
    hidden: int = 256
    num_layers: int = 2
    learning_rate: float = 3e-4
    synthetic: Synthetic = "bridges"
    uniform_over: UniformOver = "transitions"
    precision: Literal["auto", "float32", "bf16"] = "float32"

    def __post_init__(self) -> None:
        _positive(self, "train_steps", "batch_size", "hidden", "num_layers", "learning_rate")

    def data_needs(self) -> DataNeeds:
        """Return what the algorithm asks of its training data."""
        needs = DataNeeds(synthetic=self.synthetic, uniform_over=self.uniform_over)
        return replace(needs, decoupled=getattr(self, "decoupled", False))  # a setting of those with a critic

    def _flops(self, passes: float) -> float:
        """Return the operations of a step in which networks of this size go forward and back ``passes`` times."""
        return 6.0 * passes * self.num_layers * self.hidden**2 * self.batch_size


@dataclass(frozen=True, kw_only=True)
class TD3BCConfig(MLPConfig):
    """TD3+BC (Fujimoto and Gu 2021, arXiv 2106.06860); the defaults are the paper's.

    Attributes:
        alpha: strength of Q against cloning, lambda = alpha / mean |Q|.
        policy_noise, noise_clip: of the smoothed target action, in units of half the action range.
        policy_delay: critic updates per actor and target update.
        decay: ``cosine`` lets the actor's learning rate fall to nothing, so that the last checkpoint is an average one.
        decoupled: where the augmented part is weighted, the critics learn from it unweighted, the actor weighted.
    """

    gamma: float = 0.99
    tau: float = 0.005
    alpha: float = 2.5
    policy_noise: float = 0.2
    noise_clip: float = 0.5
    policy_delay: int = 2
    decay: Literal["none", "cosine"] = "none"
    decoupled: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "alpha", "policy_delay")
        _unit(self, "gamma", "policy_noise")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1], got tau={self.tau}")
        if self.noise_clip < 0:
            raise ValueError(f"noise_clip must be >= 0, got noise_clip={self.noise_clip}")

    @property
    def flops(self) -> float:
        return self._flops(passes=5.0)


@dataclass(frozen=True, kw_only=True)
class IQLConfig(MLPConfig):
    """Implicit Q-Learning (Kostrikov et al. 2021, arXiv 2110.06169); the defaults are the paper's for MuJoCo.

    Attributes:
        expectile: of Q over actions that V estimates; 0.5 is the mean, close to 1 the largest in the data.
        temperature: beta, the weight of advantages against cloning: actions count exp(beta * A), at most 100.
        reward_range: rewards are scaled so that the returns of the original data span this (1000 in the authors' code
            for MuJoCo), which is what ``temperature`` is relative to; 0 leaves rewards as they are.
        decoupled: as of TD3+BC; V learns with the critics.
    """

    gamma: float = 0.99
    tau: float = 0.005
    expectile: float = 0.7
    temperature: float = 3.0
    reward_range: float = 1000.0
    decoupled: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        super().__post_init__()
        _positive(self, "temperature")
        _unit(self, "gamma")
        if not 0 < self.tau <= 1:
            raise ValueError(f"tau must be in (0, 1], got tau={self.tau}")
        if not 0 < self.expectile < 1:
            raise ValueError(f"expectile must be in (0, 1), got expectile={self.expectile}")
        if not self.reward_range >= 0:
            raise ValueError(f"reward_range must be >= 0, got reward_range={self.reward_range}")

    @property
    def flops(self) -> float:
        return self._flops(passes=5.0)


@dataclass(frozen=True, kw_only=True)
class DTConfig:
    """Decision Transformer (Chen et al. 2021, arXiv 2106.01345); the defaults are the paper's for MuJoCo.

    Attributes:
        context: time steps per window (K), three tokens each.
        warmup_fraction: share of the steps over which the learning rate rises linearly (10k of 100k in the paper).
        decay: what the learning rate does after that, down to ``final_fraction`` of its peak.
        grad_clip: largest gradient norm.
        uniform_over: of the augmented part every window is as likely as any other, or every episode.
        precision: of the blocks' products; ``auto`` takes bf16 where the machine multiplies it faster.
        prompt: what the policy is asked for. ``target``: given returns. ``max``: at every step the largest return-to-go
            that the data promise here, the ``prompt_expectile`` of a network. ``both``: the one, and the other beside.
        prefix: most steps that are kept of a stitched or joined episode before it leaves its source; None keeps all.
        fourier: standard deviation of the frequencies of Fourier features of the standardised observation, 0 for none;
            for observations of few dimensions on which actions depend sharply, such as a position in a maze.
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
    uniform_over: UniformOver = "transitions"
    precision: Literal["auto", "float32", "bf16"] = "float32"
    prompt: Literal["target", "max", "both"] = field(default="target", metadata=LATER)
    prompt_expectile: float = field(default=0.99, metadata=LATER)
    prefix: int | None = field(default=None, metadata=LATER)
    fourier: float = field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        if not (self.prefix is None or self.prefix >= 0) or not self.fourier >= 0:
            raise ValueError(f"prefix and fourier must be >= 0, got prefix={self.prefix}, fourier={self.fourier}")
        if not 0.5 <= self.prompt_expectile < 1:
            raise ValueError(f"prompt_expectile must be in [0.5, 1), got prompt_expectile={self.prompt_expectile}")
        sizes = ("train_steps", "batch_size", "context", "width", "num_layers", "num_heads")
        _positive(self, *sizes, "learning_rate", "grad_clip")
        _unit(self, "dropout", "warmup_fraction", "final_fraction")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be >= 0, got weight_decay={self.weight_decay}")
        if self.width % self.num_heads:
            raise ValueError(f"width must be divisible by num_heads={self.num_heads}, got width={self.width}")

    def data_needs(self) -> DataNeeds:
        """Return what the algorithm asks of its training data."""
        return DataNeeds(uniform_over=self.uniform_over, context=self.context, prefix=self.prefix)

    @property
    def flops(self) -> float:
        return 6.0 * 12 * self.num_layers * self.width**2 * 3 * self.context * self.batch_size


@dataclass(frozen=True, kw_only=True)
class BCConfig(MLPConfig):
    """Behaviour cloning; ``top_fraction=0.1`` is the usual "10 % BC" on the episodes with the highest returns.

    Attributes:
        top_fraction: share of episodes kept, by return, of the original and of the augmented part each.
        decay: ``cosine`` lets the learning rate fall to nothing at the end.
    """

    top_fraction: float = 1.0
    decay: Literal["none", "cosine"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must be in (0, 1], got top_fraction={self.top_fraction}")

    def data_needs(self) -> DataNeeds:
        """Return what the algorithm asks of its training data."""
        return replace(super().data_needs(), top_fraction=self.top_fraction)

    @property
    def flops(self) -> float:
        return self._flops(passes=1.0)


AlgorithmConfig = TD3BCConfig | IQLConfig | DTConfig | BCConfig


@dataclass(frozen=True, kw_only=True)
class AlgorithmConfigs:
    """Settings of every algorithm by name; ``registry`` has what they do."""

    td3bc: TD3BCConfig = field(default_factory=TD3BCConfig)
    iql: IQLConfig = field(default_factory=IQLConfig)
    dt: DTConfig = field(default_factory=DTConfig)
    bc: BCConfig = field(default_factory=BCConfig)

    def of(self, algo: str) -> AlgorithmConfig:
        """Return the settings of an algorithm.

        Raises:
            UserError: for an unknown one.
        """
        check_choice("algo", algo, (known.name for known in fields(self)))
        return getattr(self, algo)


ALGORITHM_CONFIGS: dict[str, type[AlgorithmConfig]] = get_type_hints(AlgorithmConfigs)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation in the real environment.

    Attributes:
        num_episodes: episodes of the final evaluation.
        num_envs: episodes that run side by side.
        target_returns: returns the Decision Transformer is asked for, in raw units, each evaluated and reported on its
            own; the first is the headline. Empty: the largest return of the original data. ``auto``, in a run whose
            pairs are split by value: what the best stitched episodes from the task's start promise (``reach.json`` of
            the buffer), the same for every cell.
        max_episode_steps: where evaluation episodes end; None for the environment's own limit.
        every: gradient steps between evaluations during training, 0 for none. They use other episodes than the final.
        every_episodes: episodes of each of those.
    """

    num_episodes: int = 50
    num_envs: int = 25
    target_returns: tuple[float, ...] | Literal["auto"] = ()
    every: int = 0
    every_episodes: int = 10
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        _positive(self, "num_episodes", "num_envs", "every_episodes")
        if self.every < 0:
            raise ValueError(f"every must be >= 0, got every={self.every}")
        if self.max_episode_steps is not None:
            _positive(self, "max_episode_steps")
        if self.target_returns != "auto" and not all(math.isfinite(target) for target in self.target_returns):
            raise ValueError(f"target_returns must be finite, got target_returns={list(self.target_returns)}")

    @property
    def fixed_targets(self) -> tuple[float, ...]:
        """``target_returns`` that do not depend on a buffer."""
        return () if self.target_returns == "auto" else self.target_returns

    def to_json(self) -> dict[str, Any]:
        """Return the settings as part of a trial's identity; one that came later is left out where it says nothing."""
        value = asdict(self)
        if self.max_episode_steps is None:
            del value["max_episode_steps"]
        return value
