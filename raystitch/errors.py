"""The two errors the command line turns into one line and an exit status."""


class UserError(ValueError):
    """The input is wrong: says what, where and what to do about it. The command line exits with 2."""


class RunError(RuntimeError):
    """The input is right but the run could not finish (full disk, nothing to stitch, ...). Exits with 1."""


class StorageError(RunError):
    """Files cannot be written, read or removed: full disk, no permission, storage that does not answer."""
