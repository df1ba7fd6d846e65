"""``DatasetRef``: which trajectories are meant, as a value that every process can load for itself."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import FILE_KINDS, load_dataset, parse_ref
from raystitch.data.select import SelectedEpisodes, choose_episodes, mends, selection_text
from raystitch.data.selectors import Embed, standardised
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError


@dataclass(frozen=True)
class DatasetRef:
    """Says which trajectories are meant.

    Attributes:
        ref: ``minari:mujoco/hopper/medium-v0``, ``d4rl:FILE.hdf5``, ``ogbench:FILE.npz``, ``demo:pointmaze``, or a bare
            id or path.
        env: the environment that a user names, in place of the recorded one; never an id that was found in a file.
        select: the episodes that are kept: names of ``EPISODE_SELECTORS`` with their values, ``best=0.5,clean``; kept
            in the one way to write them (``selection_text``).

    Raises:
        UserError: for an unknown selector, or a value that is not one.
    """

    ref: str
    _: KW_ONLY
    env: str | None = None
    select: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "select", selection_text(self.select))

    def load(self, default_env: EnvSpec | None = None) -> EpisodeDataset:
        """Load the trajectories.

        Args:
            default_env: what a bundle or buffer of this dataset says; counts where the data name another or none.

        Raises:
            UserError: as ``load_dataset``, and when the selection keeps too little.
        """
        return self.load_selected(default_env).dataset

    def load_selected(self, default_env: EnvSpec | None = None, embed: Embed = standardised) -> SelectedEpisodes:
        """Load the trajectories, and say what was selected; a selection that cleans may read data with NaN.

        Args:
            embed: see ``choose_episodes``.

        Raises:
            UserError: as ``load``.
        """
        allow_nan = mends(self.select)
        whole = load_dataset(self.ref, env_id=self.env, allow_nan=allow_nan, default_env=default_env)
        return choose_episodes(whole, self.select, embed)

    def load_recorded(self, default_env: EnvSpec | None = None) -> EpisodeDataset:
        """Load trajectories that a buffer or a run names, which a stranger may have written: nothing is downloaded.

        Raises:
            UserError: as ``load``, and when a Minari dataset is not on this machine.
        """
        kind, name = parse_ref(self.ref)
        if kind == "minari":
            from raystitch.data.minari_root import check_dataset_id, dataset_path, minari_root, resolve
            from raystitch.data.spaces import split_keys

            dataset_id, _ = split_keys(name)
            if not dataset_path(resolve(check_dataset_id(dataset_id))).is_dir():
                raise UserError(f"{self.ref} is not in {minari_root()}, and what a file names is not downloaded")
        return self.load(default_env)

    def absolute(self) -> "DatasetRef":
        """Return a reference that means the same in Ray's workers, whose working folder is another one."""
        kind, name = parse_ref(self.ref)
        return replace(self, ref=f"{kind}:{Path(name).expanduser().absolute()}") if kind in FILE_KINDS else self
