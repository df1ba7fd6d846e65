"""The errors the command line turns into one line and an exit status."""

from collections.abc import Iterable


class UserError(ValueError):
    """The input is wrong. The message says what, where and what to do about it. The command line exits with 2.

    Examples:
        >>> try:
        ...     rs.load_dataset("nowhere.hdf5")
        ... except rs.UserError as error:
        ...     print(error)
        nowhere.hdf5 does not exist
    """


class DamagedError(UserError):
    """A file is damaged: cut short, or a byte of it changed."""


class RunError(RuntimeError):
    """The input is right but the run could not finish (full disk, nothing to stitch, ...). Exits with 1.

    Examples:
        >>> impossible = rs.StitchConfig(qualify=QualifyConfig(delta=0))
        >>> few = AugmentConfig(num_bridges=5, pairs_per_shard=4, patience=1)
        >>> try:
        ...     augment_local(dataset, bundle, impossible, few, out="empty")
        ... except rs.RunError as error:
        ...     print("smallest" in str(error))
        True
    """


class StorageError(RunError):
    """Files cannot be written, read or removed: full disk, no permission, storage that does not answer."""


class TrialsFailed(RunError):
    """A sweep went to its end, but some of its trials failed. The command line exits with 3."""


def check_choice(name: str, value: object, known: Iterable[str]) -> None:
    """Raise UserError where ``value``, which the user gave for ``name``, is none of the ``known`` ones."""
    known = tuple(known)
    if value not in known:
        raise UserError(f"{name}={value!r} is not one of {', '.join(known)}")
