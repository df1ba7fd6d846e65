from collections.abc import Iterator

import pytest

from raystitch.cluster.runtime import ensure_ray


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One small local Ray for all tests of this folder."""
    with ensure_ray(num_cpus=2):
        yield
