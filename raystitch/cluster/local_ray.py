"""A Ray for this command alone: its temporary folder, its token, and ports that only this machine reaches."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from raystitch.cluster.private_ray import on_loopback
from raystitch.errors import RunError, UserError

SOCKET_PATH_BYTES = 107
"""The longest path of a Unix socket on Linux."""
FREE_MIB = 200
"""Ray's logs need a little; a full folder would end Ray later, with an error that does not say so."""
_TEMP_VARIABLES = ("RAY_TMPDIR", "TMPDIR")
_LOOPBACK_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def temp_folder() -> Path:
    """The folder in which Ray keeps its session folders and logs."""
    return Path(_named_temp_folder()[0])


def _named_temp_folder() -> tuple[str, str]:
    """Return the folder and the text that names it in messages."""
    for variable in _TEMP_VARIABLES:
        if value := os.environ.get(variable):
            return value, f"{variable}={value}"
    return "/tmp", "/tmp"


def check_temp_folder() -> None:
    """Refuse a temporary folder in which Ray could not put its files and sockets.

    Raises:
        UserError: saying which folder it is, what is wrong with it and what to set.
    """
    folder, named = _named_temp_folder()
    other = "set RAY_TMPDIR to a short path with room, such as RAY_TMPDIR=/tmp"
    if not os.path.isabs(folder):
        raise UserError(f"{named}: Ray's temporary folder must be an absolute path; {other}")
    socket = f"ray/session_2000-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    length = len(os.fsencode(os.path.join(folder, socket)))
    if length > SOCKET_PATH_BYTES:
        raise UserError(
            f"{named} is too long a path for Ray's temporary folder: its sockets would have paths of {length} bytes, "
            f"and the system takes {SOCKET_PATH_BYTES}; {other}"
        )
    made = Path(folder) / "ray"
    try:
        made.mkdir(parents=True, exist_ok=True)
        probe = made / f"raystitch-{secrets.token_hex(8)}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{named}: Ray cannot write its temporary folder: {error.strerror}; {other}") from error
    free = shutil.disk_usage(made).free / 2**20
    if free < FREE_MIB:
        raise UserError(
            f"{named}: Ray's temporary folder has {free:.0f} MiB left and needs {FREE_MIB}; free some, or {other}"
        )


def ensure_token() -> None:
    """Make the token that Ray asks for on all its ports, in a file that only this user can read.

    A token or mode set in the environment is left alone, and so is an existing file.

    Raises:
        UserError: the environment names a token's file that does not exist.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return
    if named := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        if not Path(named).is_file():
            raise UserError(f"RAY_AUTH_TOKEN_PATH={named}: there is no such file; unset it, or write the token there")
        return
    file = Path.home() / ".ray" / "auth_token"
    if file.exists():
        return
    token = secrets.token_hex(32)
    try:
        _write_secret(file, token)
    except OSError:
        # Nowhere to store it (a read-only container, say): keep it in the environment of this command and its children.
        os.environ["RAY_AUTH_TOKEN"] = token


def _write_secret(file: Path, content: str) -> None:
    """Write a file that only this user can read; if another process has just written it, keep that one."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        with suppress(FileExistsError):
            os.link(part, file)
    finally:
        part.unlink()


@contextmanager
def loopback() -> Iterator[None]:
    """A Ray that is started in the block listens on 127.0.0.1 alone, unless Ray's own variable is set."""
    with nullcontext() if _LOOPBACK_VARIABLE in os.environ else on_loopback():
        yield


def start(**arguments: Any) -> None:
    """Start a Ray for this command alone; ``arguments`` go to ``ray.init``.

    Raises:
        UserError: an unusable temporary folder or token file.
        RunError: Ray cannot start.
    """
    check_temp_folder()
    ensure_token()
    import ray

    with loopback():
        try:
            # Without "local", Ray joins any cluster that happens to run on this machine.
            ray.init(address="local", include_dashboard=False, **arguments)
        except Exception as error:  # Ray raises bare ones too when the machine is too busy for its start-up
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(f"a local Ray could not be started: {first}") from error
