"""Settings of the stitching stages; imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raystitch.models.calibration import AUTO, check_delta, check_threshold

if TYPE_CHECKING:
    from raystitch.data.episodes import EpisodeDataset

SOURCE_FRACTION, TARGET_FRACTION = 0.5, 0.3
"""Shares of the episodes that are sources and targets where they are split by return."""


@dataclass(frozen=True, kw_only=True)
class PairConfig:
    """Pair selection: the states to leave and to enter.

    Attributes:
        mode: ``random`` (the paper), ``imagine`` (imagine the future, retrieve the nearest target),
            ``successor`` (targets nearest to the source's own later states), ``distance`` (targets within the reachable
            gaps by the temporal-distance embedding, ranked by value gain), or ``auto``: the one whose bridges bring
            most in a pilot at the start of ``augment``, as far as the judges hold them true.
        split: ``value``: any state may be left, and any entered from which more is promised; what states are worth
            travels through the rounds. ``return`` (the paper): episodes are split by their whole returns. ``auto``:
            ``value`` where rewards are sparse (``has_sparse_rewards``) or ``curiosity`` is asked for, ``return``
            elsewhere and where a fraction is given.
        source_fraction: of split ``return``: sources come from this share of episodes with the lowest returns.
        target_fraction: of split ``return``: targets come from this share of episodes with the highest returns; of
            those, where returns are tied, from the ones above the median source.
        source_cut, target_cut: ``any`` step of the episode, or its end / start as in the paper (``ends``). The modes
            ``successor`` and ``distance`` need the source's own later states: their end lies gap_min + 1 steps earlier.
        terminal_margin: sources are left at least this many steps before a termination.
        max_target_reuse: times one target state may be used per shard; 0 for no limit.
        num_tries: steps of a source episode tried per pair, of one episode by ``imagine``, of each of four by
            ``successor`` and ``distance``; the one from which a target is nearest is left.
        num_imagine_steps: denoising steps of the futures that ``imagine`` retrieves with.
        value_check: prefer targets whose (bootstrapped, discounted) return promises more than the source's own.
        context: ``match`` pairs only episodes that agree on the dimensions that are constant within every episode but
            differ between them (a goal); ``ignore`` does not look.
        novelty: smallest distance (L2, standardised units) between the target and the source's own recorded state at
            that time (after its end, its last one), in every mode; 0 takes any.
        seam_max: largest squared L2 distance (standardised units) between the target and the state that the source is
            expected in at that time: its own recorded one (``successor``, ``distance``) or the imagined one
            (``imagine``; ``random`` expects none). A number; a quantile such as ``q95`` of how far apart recorded
            windows of that gap end that begin as near neighbours in two episodes, one of them held out; ``auto``, by
            the same pilot as the mode; or ``off``, any distance.
        curiosity: of split ``value``: weight of a target's novelty beside the gain it promises, in every mode. It is
            novel if it is far from what earlier rounds have entered (mean distance to the 10 nearest such states; 1 is
            far). Gains and novelty are at most 1; a weight of 2 is that of SCoTS.
    """

    EARLIER: ClassVar[Mapping[str, Any]] = {"split": "return", "curiosity": 0.0, "seam_max": None}
    """What files say that were written before there was a key for it."""

    mode: Literal["random", "imagine", "successor", "distance", "auto"] = "successor"
    split: Literal["auto", "value", "return"] = "auto"
    source_fraction: float = SOURCE_FRACTION
    target_fraction: float = TARGET_FRACTION
    source_cut: Literal["any", "ends"] = "any"
    target_cut: Literal["any", "ends"] = "any"
    terminal_margin: int = 8
    max_target_reuse: int = 10
    num_tries: int = 4
    num_imagine_steps: int = 4
    value_check: bool = True
    context: Literal["match", "ignore"] = "match"
    novelty: float = 0.0
    curiosity: float = 0.0
    seam_max: float | str | None = None

    def __post_init__(self) -> None:
        if self.seam_max != AUTO:
            object.__setattr__(self, "seam_max", check_threshold(self.seam_max, "seam_max", also=f"{AUTO}, "))
        if self.seam_max == float("inf"):
            raise ValueError("seam_max must be finite, got seam_max=inf; off takes any distance")
        if self.mode == "random" and self.seam_max is not None:
            raise ValueError(
                f"seam_max={self.seam_max} needs a state in which the source is expected, which mode=random does not "
                "have; use mode successor, distance or imagine, or seam_max=off"
            )
        for name in ("novelty", "curiosity"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be >= 0 and finite, got {name}={getattr(self, name)}")
        if self.curiosity and self.split_asked == "return":
            raise ValueError(
                f"curiosity={self.curiosity} belongs to pairs.split: value, whose rounds know which states were entered"
            )
        for name in ("source_fraction", "target_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {name}={getattr(self, name)}")
        if self.split == "value":
            for name, usual in (("source_fraction", SOURCE_FRACTION), ("target_fraction", TARGET_FRACTION)):
                if getattr(self, name) != usual:
                    raise ValueError(
                        f"{name}={getattr(self, name)} belongs to pairs.split: return, where episodes are sources or "
                        "targets; with split: value any state may be either"
                    )
        for name in ("terminal_margin", "num_tries", "num_imagine_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        if self.max_target_reuse < 0:
            raise ValueError(f"max_target_reuse must be >= 0, got max_target_reuse={self.max_target_reuse}")

    @property
    def split_asked(self) -> Literal["auto", "value", "return"]:
        """The split, where ``auto`` is decided by the settings that only one of them has."""
        if self.split != "auto":
            return self.split
        if (self.source_fraction, self.target_fraction) != (SOURCE_FRACTION, TARGET_FRACTION):
            return "return"
        return "value" if self.curiosity else "auto"

    @property
    def needs_pilot(self) -> bool:
        """True where ``augment`` has to find out which pairs are best."""
        return AUTO in (self.mode, self.seam_max)

    def piloted(self, found: "PairConfig | None" = None) -> "PairConfig":
        """Return these settings with what a pilot decides as ``found`` has it; None: as the defaults have it."""
        found = found or PairConfig()
        seam_max = found.seam_max if self.seam_max == AUTO else self.seam_max
        if self.mode != AUTO:
            return replace(self, seam_max=seam_max)
        capped_random = found.mode == "random" and seam_max is not None
        return replace(self, mode=PairConfig.mode if capped_random else found.mode, seam_max=seam_max)

    def for_dataset(self, dataset: "EpisodeDataset") -> "PairConfig":
        """Return these settings with ``split: auto`` decided for a dataset, its rewards as they were recorded."""
        split = self.split_asked
        if split == "auto":
            from raystitch.data.returns import has_sparse_rewards  # imports numpy

            split = "value" if has_sparse_rewards(dataset) else "return"
        return self if split == self.split else replace(self, split=split)

    def split_text(self, decided: "PairConfig") -> str:
        """What ``split: auto`` came to, and why, for the user."""
        if self.split_asked != "auto":
            why = "which other settings of pairs ask for"
        else:
            why = "rewards are sparse" if decided.split == "value" else "rewards are not sparse"
        return f"pairs.split: auto chose {decided.split} ({why})"


@dataclass(frozen=True, kw_only=True)
class GapConfig:
    """Gap estimation: the number of states to generate.

    Attributes:
        mode: ``imagine`` (the paper: most similar index of an imagined future), ``residual`` (several gaps in one
            batch, the one with the proposers' lowest residual is kept), ``distance`` (the temporal distance of the two
            states by the embedding), ``selected`` (the gap that pair selection found, else as ``residual``).
        num_candidates: gaps tried per pair by ``residual``.
        similarity: ``cosine`` as in the paper, or ``distance`` in standardised units.
    """

    mode: Literal["imagine", "residual", "distance", "selected"] = "selected"
    num_candidates: int = 4
    similarity: Literal["cosine", "distance"] = "distance"

    def __post_init__(self) -> None:
        if self.num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, got num_candidates={self.num_candidates}")


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Sampling: the denoising of the windows.

    Attributes:
        name: ``ddim``, ``ddpm`` or ``dpmpp_2m`` (DPM-Solver++, second order, multistep).
        num_steps: network evaluations per window.
        noise_scale: multiplies the initial and the injected noise; 1 is the plain sampler.
        return_weight: classifier-free guidance on the return (Ho & Salimans 2022, Eq. 6); 0 samples without a return,
            1 conditionally, the published 1.2 beyond it. Needs a model fitted with ``diffusion.return_dropout``.
        return_target: quantile of the data's discounted returns that is asked for, in (0, 1).
        micro_batch: rows in one evaluation; halved, and kept so, when memory runs out.
        precision: of the network: ``auto`` takes bf16 where the machine multiplies it faster than float32.
        compile: ``torch.compile`` the network; ``auto`` does on CUDA, where it has not been measured yet.
    """

    name: Literal["ddim", "ddpm", "dpmpp_2m"] = "ddim"
    num_steps: int = 2
    noise_scale: float = 0.5
    return_weight: float = 0.0
    return_target: float = 0.95
    micro_batch: int = 256
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.micro_batch < 1:
            raise ValueError(f"num_steps and micro_batch must be at least 1, got {self.num_steps}, {self.micro_batch}")
        if not self.noise_scale >= 0:
            raise ValueError(f"noise_scale must be >= 0, got noise_scale={self.noise_scale}")
        if not self.return_weight >= 0:
            raise ValueError(f"return_weight must be >= 0, got return_weight={self.return_weight}")
        if not 0 < self.return_target < 1:
            raise ValueError(f"return_target must be in (0, 1), got return_target={self.return_target}")


@dataclass(frozen=True, kw_only=True)
class GuidanceConfig:
    """Guidance in the sampler: unknown states move to where the proposers' standardised residual is smaller.

    Attributes:
        schedule: ``off``, ``constant`` (full moves in each guided step) or ``scheduled`` (moves grow linearly to full
            size at the last step, as the predicted clean states become trustworthy).
        solver: ``newton`` (damped Gauss-Newton over all unknown states of a window) or ``gradient``.
        last_steps: sampler steps that are guided, counted from the end.
        moves: moves after each guided step; with ``until`` at most so many.
        until: a row whose largest residual by the proposers is at most this is moved no more; a number or a quantile of
            the proposers' own calibration. None or ``off`` moves every row ``moves`` times.
        damping: of ``newton``: larger is smaller and safer.
        strength: size of a ``gradient`` move; contacts make large ones diverge.
        clip: largest move of a state per dimension, standardised units.
    """

    EARLIER: ClassVar[Mapping[str, Any]] = {"until": None}

    schedule: Literal["off", "constant", "scheduled"] = "constant"
    solver: Literal["newton", "gradient"] = "newton"
    last_steps: int = 1
    moves: int = 1
    until: float | str | None = None
    damping: float = 0.01
    strength: float = 0.01
    clip: float = 0.3

    def __post_init__(self) -> None:
        for name in ("last_steps", "moves"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {name}={getattr(self, name)}")
        for name in ("damping", "strength", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {name}={getattr(self, name)}")
        object.__setattr__(self, "until", check_threshold(self.until, "until"))


@dataclass(frozen=True, kw_only=True)
class RepairConfig:
    """Repair: bridges that the proposers doubt are re-noised part of the way and denoised again.

    Attributes:
        rounds: further attempts a pair may get; 0 switches repair off.
        repair_delta: a pair whose largest residual by the proposers is at least this is tried again; a number or a
            quantile of the proposers' own calibration.
        noise_level: share of the diffusion steps that is undone, in (0, 1].
        num_steps: network evaluations of a repair.
        moves: of guidance after each guided step, in place of ``guidance.moves``.
        gap_shift: the first repair keeps the gap, the next ones try gaps 1, 2, .. away from it, at most this many.
    """

    rounds: int = 1
    repair_delta: float | str = "q99"
    noise_level: float = 0.1
    num_steps: int = 1
    moves: int = 3
    gap_shift: int = 1

    def __post_init__(self) -> None:
        if min(self.rounds, self.gap_shift) < 0 or min(self.num_steps, self.moves) < 1:
            raise ValueError(
                f"need rounds and gap_shift >= 0, num_steps and moves >= 1, got rounds={self.rounds}, "
                f"gap_shift={self.gap_shift}, num_steps={self.num_steps}, moves={self.moves}"
            )
        if not 0 < self.noise_level <= 1:
            raise ValueError(f"noise_level must be in (0, 1], got noise_level={self.noise_level}")
        check_threshold(self.repair_delta, "repair_delta")


@dataclass(frozen=True, kw_only=True)
class QualifyConfig:
    """Acceptance criteria of a bridge at the generation settings. None switches a criterion off.

    Attributes:
        delta: largest squared L2 residual in standardised units; a number, a quantile of real held-out windows of
            the same gap (``q99``), ``auto`` (what keeps 95 % of the bridges below noise of 0.05 on real states, by
            held-out windows; ``Calibration.truthful``), or ``off``.
        spread: largest disagreement of the judges (squared L2, standardised), a number or a quantile as for delta.
        rollout: largest squared L2 distance between the state entered and the judges' own roll-out of the bridge's
            actions, a number or a quantile.
        termination_max: largest predicted termination probability of a generated state.
        value_check: accept only if the pessimistic return exceeds the source's own from the same state.
        kappa: reward spread subtracted per step in that pessimistic return.
    """

    delta: float | str | None = "q99"
    spread: float | str | None = None
    rollout: float | str | None = None
    termination_max: float | None = 0.5
    value_check: bool = True
    kappa: float = 1.0

    def __post_init__(self) -> None:
        check_delta(self.delta)
        for name in ("spread", "rollout"):
            check_threshold(getattr(self, name), name)
        if self.termination_max is not None and not 0 <= self.termination_max <= 1:
            raise ValueError(f"termination_max must be in [0, 1], got termination_max={self.termination_max}")
        if not self.kappa >= 0:
            raise ValueError(f"kappa must be >= 0, got kappa={self.kappa}")


@dataclass(frozen=True, kw_only=True)
class StitchConfig:
    """All settings of a Stitcher, by stage.

    Attributes:
        pairs, gap, sampler, guidance, repair, qualify: see the class of each.

    Examples:
        >>> from raystitch.stitching.config import GuidanceConfig, QualifyConfig
        >>> config = rs.StitchConfig(guidance=GuidanceConfig(moves=2), qualify=QualifyConfig(delta="q95"))
        >>> config.pairs.mode, config.sampler.name, config.qualify.delta
        ('successor', 'ddim', 'q95')
    """

    pairs: PairConfig = field(default_factory=PairConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: GuidanceConfig = field(default_factory=GuidanceConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)
    qualify: QualifyConfig = field(default_factory=QualifyConfig)

    def for_dataset(self, dataset: "EpisodeDataset") -> "StitchConfig":
        """Return these settings with what is ``auto`` decided for a dataset."""
        return replace(self, pairs=self.pairs.for_dataset(dataset))

    def identity(self) -> dict[str, Any]:
        """Return the settings as part of what identifies a buffer or a trial.

        A key that came later is left out where it says what was done before there was one: what was made then keeps its
        identity.
        """
        value = asdict(self)
        for part, kind in (("pairs", PairConfig), ("guidance", GuidanceConfig)):
            for name, before in kind.EARLIER.items():
                if value[part][name] == before:
                    del value[part][name]
        return value
