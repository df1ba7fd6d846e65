"""The client of the raystitch endpoint. A folder to copy out: it needs numpy, pyarrow and httpx, nothing else of
raystitch. tests/client tells when it broke.

With ``raystitch serve`` running:

    from raystitch.client import Client

    with Client("http://127.0.0.1:8000") as client:
        worst = client.episodes(descending=False, limit=1)["episodes"][0]["index"]
        best = client.episodes(descending=True, limit=1)["episodes"][0]["index"]
        source, target = client.episode(worst), client.episode(best)
        result = client.stitch(source, target, seed=1)
        print(result.accepted, result.reason, result.trajectory.observations.shape)

Legend of shapes: T states of a trajectory, O observation and A action size, M transitions of the stitched trajectory.
"""

from .clients import AsyncClient, Client
from .errors import DeadlineExceeded, InvalidRequest, Overloaded, StitchError, Unauthorized
from .values import Bridge, Candidate, Result, StitchedTrajectory, Trajectory

__all__ = [
    "AsyncClient",
    "Bridge",
    "Candidate",
    "Client",
    "DeadlineExceeded",
    "InvalidRequest",
    "Overloaded",
    "Result",
    "StitchError",
    "StitchedTrajectory",
    "Trajectory",
    "Unauthorized",
]
