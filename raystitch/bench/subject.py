"""What the engine is measured on: the user's data and stitcher, or made-up ones."""

from dataclasses import dataclass
from pathlib import Path

from raystitch.bench.synthetic import make_bundle, make_walks
from raystitch.data.episodes import EpisodeDataset
from raystitch.models.bundle import Bundle

NUM_TRANSITIONS = 10_000


@dataclass(frozen=True, kw_only=True, eq=False)
class BenchOptions:
    """What ``raystitch bench engine`` may be told.

    Attributes:
        dataset: None for random walks.
        stitcher: folder of a bundle fitted on ``dataset``; None for one that is barely fitted.
        num_pairs: pairs stitched at once.
    """

    dataset: EpisodeDataset | None = None
    stitcher: Path | None = None
    num_pairs: int = 512


@dataclass(frozen=True, eq=False)
class Subject:
    """Data, models, and what a reader has to know about them."""

    dataset: EpisodeDataset
    bundle: Bundle
    about: str


def find_subject(options: BenchOptions) -> Subject:
    """The subject that the options name.

    Raises:
        UserError: when the stitcher was fitted on another dataset.
    """
    dataset = options.dataset or make_walks(NUM_TRANSITIONS)
    if options.stitcher is None:
        return Subject(dataset, make_bundle(dataset), f"{dataset.name}, barely fitted")
    bundle = Bundle.load(options.stitcher)
    bundle.check_dataset(dataset)
    return Subject(dataset, bundle, f"{dataset.name}, {options.stitcher.name}")
