"""Settings of the stitching stages; torch-free."""

import re
from dataclasses import dataclass, field
from typing import Literal

Delta = float | str | None


def check_delta(delta: Delta) -> Delta:
    """A delta as users write it: a number >= 0, a quantile such as ``q99``, ``q99.5``, or ``off`` / None.

    Raises:
        ValueError: for anything else, with the value.
    """
    if delta is None or delta == "off":
        return None
    if isinstance(delta, str):
        if re.fullmatch(r"q\d{1,2}(\.\d+)?|q100", delta):
            return delta
        try:
            delta = float(delta)
        except ValueError:
            raise ValueError(f"delta={delta!r}: use a number >= 0, a quantile such as q99, or off") from None
    if not delta >= 0:
        raise ValueError(f"delta must be >= 0, got delta={delta}")
    return float(delta)


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Which states to leave and which to enter.

    Attributes:
        mode: ``random`` (the paper), ``imagine`` (imagine the future, retrieve the nearest high-return state),
            ``successor`` (targets nearest to the source's own later states).
        source_fraction: sources come from this share of episodes with the lowest returns.
        target_fraction: targets come from this share of episodes with the highest returns; of those, where returns
            are tied, from the ones above the median source.
        source_cut, target_cut: ``any`` step of the episode, or its end / start as in the paper (``ends``).
        terminal_margin: sources are left at least this many steps before a termination.
        max_target_reuse: times one target state may be used per shard; 0 for no limit.
        num_tries: steps of the source episode tried per pair by ``imagine`` and ``successor``; the one from which a
            target is nearest is left.
        num_imagine_steps: denoising steps of the futures that ``imagine`` retrieves with.
        value_check: prefer targets whose (bootstrapped, discounted) return promises more than the source's own.
    """

    mode: Literal["random", "imagine", "successor"] = "successor"
    source_fraction: float = 0.5
    target_fraction: float = 0.3
    source_cut: Literal["any", "ends"] = "any"
    target_cut: Literal["any", "ends"] = "any"
    terminal_margin: int = 8
    max_target_reuse: int = 10
    num_tries: int = 4
    num_imagine_steps: int = 4
    value_check: bool = True

    def __post_init__(self) -> None:
        for name in ("source_fraction", "target_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {name}={getattr(self, name)}")
        for name in ("terminal_margin", "num_tries", "num_imagine_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if self.max_target_reuse < 0:
            raise ValueError(f"max_target_reuse must be >= 0, got max_target_reuse={self.max_target_reuse}")


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """How many states to generate. ``selected``: as the pair selection found it, ``residual`` where it found none.

    Attributes:
        mode: ``imagine`` (the paper: most similar index of an imagined future), ``residual`` (several gaps in one
            batch, the lowest residual of the proposal's own dynamics members is kept), ``selected``.
        num_candidates: gaps tried per pair by ``residual``.
        similarity: ``cosine`` as in the paper, or ``distance`` in standardised units.
    """

    mode: Literal["imagine", "residual", "selected"] = "selected"
    num_candidates: int = 4
    similarity: Literal["cosine", "distance"] = "distance"

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got num_candidates={self.num_candidates}")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the windows are denoised. ``noise_scale`` multiplies the injected noise (1 is the plain sampler)."""

    name: Literal["ddim", "ddpm"] = "ddim"
    num_steps: int = 5
    noise_scale: float = 1.0
    micro_batch: int = 256

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.micro_batch < 1:
            raise ValueError(f"num_steps and micro_batch must be at least 1, got {self.num_steps}, {self.micro_batch}")


@dataclass(frozen=True, kw_only=True)
class QualifyConfig:
    """What a bridge must pass to be accepted at the generation settings.

    Attributes:
        delta: largest squared L2 residual in standardised units; a number, a quantile of real held-out windows of
            the same gap (``q99``), or ``off``.
        termination_max: largest predicted termination probability of a generated state; None switches it off.
        value_check: accept only if the pessimistic return exceeds the source's own from the same state.
        kappa: reward spread subtracted per step in that pessimistic return.
    """

    delta: float | str | None = "q99"
    termination_max: float | None = 0.5
    value_check: bool = True
    kappa: float = 1.0

    def __post_init__(self) -> None:
        check_delta(self.delta)


@dataclass(frozen=True, kw_only=True)
class StitchConfig:
    """One Stitcher."""

    pairs: PairConfig = field(default_factory=PairConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    qualify: QualifyConfig = field(default_factory=QualifyConfig)
