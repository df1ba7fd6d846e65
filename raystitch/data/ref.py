"""``DatasetRef``: which trajectories are meant, as a value that every process can load for itself."""

from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path

from raystitch.data.episodes import EpisodeDataset
from raystitch.data.load import load_dataset, parse_ref
from raystitch.data.select import find_selector, select_episodes
from raystitch.envs.spec import EnvSpec
from raystitch.errors import UserError


@dataclass(frozen=True)
class DatasetRef:
    """Says which trajectories are meant.

    Attributes:
        ref: ``minari:ID``, ``d4rl:FILE.hdf5``, ``demo:pointmaze``, or a bare id or path.
        env: the environment that a user names, in place of the recorded one; never an id that was found in a file.
        select: the episodes that are kept, a name of ``EPISODE_SELECTORS``.

    Raises:
        UserError: for an unknown selector.
    """

    ref: str
    _: KW_ONLY
    env: str | None = None
    select: str = "all"

    def __post_init__(self) -> None:
        find_selector(self.select)

    def load(self, default_env: EnvSpec | None = None) -> EpisodeDataset:
        """Load the trajectories.

        Args:
            default_env: what a bundle or buffer of this dataset says; counts where the data name another or none.

        Raises:
            UserError: as ``load_dataset``, and when the selector keeps nothing.
        """
        return select_episodes(load_dataset(self.ref, env_id=self.env, default_env=default_env), self.select)

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
        return replace(self, ref=f"d4rl:{Path(name).expanduser().absolute()}") if kind == "d4rl" else self
