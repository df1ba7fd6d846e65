"""Settings of a search for the ratio and the delta of stitched data; part of a run's configuration."""

import math
from dataclasses import dataclass, field
from typing import Literal

from raystitch.models.calibration import Delta, check_delta
from raystitch.shaping.config import ShapingConfig
from raystitch.trainers.config import ALGORITHM_CONFIGS
from raystitch.trainers.ratio import parse_ratio
from raystitch.trainers.shaped import Returns, Rewards, Weights, check_shaping, shaping_of


@dataclass(frozen=True, kw_only=True)
class RatioRange:
    """Augmented rows per original row, drawn log-uniformly: 0.25 is the ratio 1:0.25, or 4:1."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"need 0 < low < high, got low={self.low}, high={self.high}")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of the search over ratio and delta before the grid; the best cell becomes the headline and joins the
    grid.

    A cell's value is the mean over ``seeds`` of normalised score, else success rate, else return, of the last
    evaluation. Nothing is tuned on the reported seeds: ``seeds`` are others than the run's. The grid itself
    always trains every cell to its end.

    Attributes:
        algorithm: ``none`` for no search; ``random``; ``optuna`` (TPE), an extra: pip install 'raystitch[search]'.
        scheduler: ``fifo`` trains every cell to its end; ``asha`` stops cells early that are behind at evaluations
            during training (``evaluation.every``). After an interruption it compares only with what came since.
        num_samples: cells that are tried; no more than there are.
        algo: what is trained.
        ratio: values to choose from, or a range.
        delta: values to choose from.
        weights, rewards, returns: what is done to the data of every cell, as in a line of the grid.
    """

    algorithm: Literal["none", "random", "optuna"] = "none"
    scheduler: Literal["fifo", "asha"] = "fifo"
    num_samples: int = 16
    seeds: tuple[int, ...] = (1000, 1001)
    algo: str = "td3bc"
    ratio: tuple[str, ...] | RatioRange = field(default_factory=lambda: RatioRange(low=0.1, high=4.0))
    delta: tuple[Delta, ...] = ("q90", "q99", "off")
    weights: Weights = "uniform"
    rewards: Rewards = "recorded"
    returns: Returns = "plain"

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got num_samples={self.num_samples}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be distinct numbers >= 0, got seeds={list(self.seeds)}")
        if self.algo not in ALGORITHM_CONFIGS:
            raise ValueError(f"algo must be one of {', '.join(ALGORITHM_CONFIGS)}, got {self.algo!r}")
        if self.scheduler == "asha" and self.algorithm == "none":
            raise ValueError("scheduler: asha stops cells of a search; the grid is always trained to its end")
        if not isinstance(self.ratio, RatioRange):
            if not self.ratio:
                raise ValueError("ratio is empty: name at least one, such as 1:1, or a range")
            for ratio in self.ratio:
                if not parse_ratio(ratio).augmented:
                    raise ValueError(f"ratio={ratio} has no augmented data to search over")
        if not self.delta:
            raise ValueError("delta is empty: name at least one")
        for delta in self.delta:
            check_delta(delta)
        check_shaping(self.shaping, self.algo, ALGORITHM_CONFIGS[self.algo](), "stitched")

    @property
    def shaping(self) -> ShapingConfig:
        """The three hooks on the data of every cell."""
        return shaping_of(self.weights, self.rewards, self.returns)

    @property
    def num_cells(self) -> int:
        """Number of cells to try."""
        if isinstance(self.ratio, RatioRange):
            return self.num_samples
        return min(self.num_samples, len(set(self.ratio)) * len(set(self.delta)))
