"""Settings of the three hooks on training data; torch-free. A name is a key of the hook's registry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

WeightName = Literal["uniform", "rw", "aw", "top", "oper_r", "oper_a", "sources"]
"""Rules for the chance to draw an episode; docs/shaping.md describes each, as it does those below."""
RewardName = Literal["recorded", "penalty", "cut", "shift", "scale", "bonus", "zero"]
"""Rules for the rewards of steps."""
ReturnName = Literal["plain", "qdt"]
"""Rules for returns-to-go."""

USES: Mapping[str, tuple[str, ...]] = {
    "uniform": (),
    "rw": ("temperature",),
    "aw": ("temperature",),
    "top": ("share",),
    "oper_r": ("base",),
    "oper_a": (),
    "sources": (),
    "recorded": (),
    "penalty": ("strength", "doubt"),
    "cut": ("strength", "doubt"),
    "shift": ("strength",),
    "scale": ("strength",),
    "bonus": ("strength", "neighbours"),
    "zero": (),
    "plain": (),
    "qdt": ("gamma", "expectile", "steps", "batch_size", "hidden", "learning_rate", "seed"),
}
"""Rule -> the settings that it reads, first the one that texts give without its name. A rule that is not listed may
read them all."""


def check_used(rule: Any) -> None:
    """Raise ValueError for a setting that is not the default and that the rule does not read."""
    if rule.name not in USES:
        return
    used = USES[rule.name]
    for setting in fields(rule):
        value = getattr(rule, setting.name)
        if setting.name not in ("name", *used) and value != setting.default:
            takes = f"it takes {', '.join(used)}" if used else "it takes no settings"
            raise ValueError(f"{rule.name} does not read {setting.name}={value}; {takes}")


@dataclass(frozen=True, kw_only=True)
class WeightConfig:
    """Settings of the weights that say how likely the episodes of the augmented part are drawn.

    Attributes:
        name: key of ``WEIGHTS``; ``uniform`` leaves episodes as they are.
        temperature: of ``rw`` and ``aw`` (the paper's alpha), in units of the range of the returns or advantages; lower
            keeps to the best episodes.
        share: of ``top``, of the episodes.
        base: of ``oper_r``, what every episode weighs beside its normalised return.
    """

    name: WeightName = "uniform"
    temperature: float = 0.1
    share: float = 0.1
    base: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got temperature={self.temperature}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got share={self.share}")
        if self.temperature == float("inf"):
            raise ValueError("temperature must be finite, got temperature=inf; weights that are all equal are uniform")
        if not 0 <= self.base < float("inf"):
            raise ValueError(f"base must be >= 0, got base={self.base}")
        check_used(self)


_STRENGTHS = {"penalty": 0.5, "cut": 1.0, "shift": 1.0, "scale": 1.0, "bonus": 1.0}
"""Rule -> its strength where none is given."""


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Settings of the rewards of stored steps, real and generated.

    Attributes:
        name: key of ``REWARDS``; ``recorded`` keeps the stored rewards.
        strength: lambda of ``penalty`` (0.5) and beta of ``bonus`` (1), in standard deviations of the recorded rewards;
            what ``shift`` adds (1), in mean rewards; the size that ``scale`` gives rewards (1); the share of what adds
            up on real data after which ``cut`` ends an episode (1).
        doubt: of ``penalty`` and ``cut``, the number that they go by.
        neighbours: of ``bonus``, recorded states whose mean distance is the novelty of a state.
    """

    name: RewardName = "recorded"
    strength: float | None = None
    doubt: Literal["residual", "spread"] = "residual"
    neighbours: int = 10

    def __post_init__(self) -> None:
        if self.strength is None and self.name in _STRENGTHS:
            object.__setattr__(self, "strength", _STRENGTHS[self.name])
        value = self.strength
        if value is not None and not math.isfinite(value):
            raise ValueError(f"strength must be finite, got strength={value}")
        positive = self.name in ("scale", "cut")
        if value is not None and ((self.name == "penalty" and value < 0) or (positive and value <= 0)):
            bound = "positive" if positive else ">= 0"
            raise ValueError(f"strength of {self.name} must be {bound}, got strength={value}")
        if self.neighbours < 1:
            raise ValueError(f"neighbours must be at least 1, got neighbours={self.neighbours}")
        check_used(self)


RECORDED = RewardConfig()
"""The rewards as they are stored."""


@dataclass(frozen=True, kw_only=True)
class ReturnConfig:
    """Settings of the returns-to-go.

    Attributes:
        name: key of ``RETURNS``; ``plain`` sums the rewards up to the episode's end, ``qdt`` relabels by a fitted V.
        gamma: of ``qdt``, the discount of V and of the returns-to-go alike; target returns are discounted too.
        expectile: of ``qdt``, of the values that the recorded steps from a state lead to; close to 1 the largest.
        steps, batch_size, hidden, learning_rate: of fitting V.
        seed: of fitting V. One V serves all seeds of a cell, so that all are asked for the same return.
    """

    name: ReturnName = "plain"
    gamma: float = 0.99
    expectile: float = 0.9
    steps: int = 20_000
    batch_size: int = 256
    hidden: int = 256
    learning_rate: float = 3e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got gamma={self.gamma}")
        if not 0.5 <= self.expectile < 1:
            raise ValueError(f"expectile must be in [0.5, 1), got expectile={self.expectile}")
        for name in ("steps", "batch_size", "hidden", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {name}={getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be >= 0, got seed={self.seed}")
        check_used(self)


RuleConfig = WeightConfig | RewardConfig | ReturnConfig


@dataclass(frozen=True, kw_only=True)
class ShapingConfig:
    """The three hooks on training data; by default each is the identity."""

    weights: WeightConfig = field(default_factory=WeightConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    returns: ReturnConfig = field(default_factory=ReturnConfig)

    def changed(self) -> dict[str, RuleConfig]:
        """Return the hooks that are not the identity, by name."""
        found = {hook.name: getattr(self, hook.name) for hook in fields(self)}
        return {name: rule for name, rule in found.items() if rule != type(rule)()}

    @property
    def text(self) -> str:
        """The shaping in words, such as ``weights aw 0.1; rewards penalty 0.5``; empty for the identities.

        Equal for equal shapings only: results.parquet, tables and ``headline`` name cells by it.
        """
        return "; ".join(f"{hook} {_rule_text(rule)}" for hook, rule in self.changed().items())

    def to_json(self) -> dict[str, Any]:
        """Return what changes something as part of a trial's identity: the rules' names and the settings they read."""
        return {hook: {"name": rule.name, **settings_of(rule)} for hook, rule in self.changed().items()}


def settings_of(rule: RuleConfig) -> dict[str, Any]:
    """Return the settings that a rule reads, by name."""
    everything = [setting.name for setting in fields(rule) if setting.name != "name"]
    return {name: getattr(rule, name) for name in USES.get(rule.name, everything)}


def _rule_text(rule: RuleConfig) -> str:
    default = {setting.name: setting.default for setting in fields(rule)}
    words = [str(rule.name)]
    for place, (name, value) in enumerate(settings_of(rule).items()):
        if place == 0:
            words.append(_short(value))
        elif value != default[name]:
            words.append(f"{name}={_short(value)}")
    return " ".join(words)


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:g}" if float(f"{value:g}") == value else repr(value)
