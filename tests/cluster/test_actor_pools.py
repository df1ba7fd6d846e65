from typing import Any

import pytest

from raystitch.buffer.config import ActorConfig, AugmentConfig
from raystitch.cluster.actor_pools import plan_pools


@pytest.mark.parametrize("gpus", [0, 1, 3])
@pytest.mark.parametrize(("cpus", "actors", "qualifiers"), [(1, 1, 1), (2, 1, 1), (2, 2, 2), (64, 4, 2), (64, None, 3)])
def test_all_actors_fit_the_cluster(cpus: int, gpus: int, actors: int | None, qualifiers: int | None) -> None:
    config = AugmentConfig(num_actors=actors, num_qualifiers=qualifiers)
    proposer, qualifier = plan_pools([{"CPU": cpus, "GPU": gpus}], config)
    assert proposer.num_cpus * proposer.max_size + qualifier.num_cpus * qualifier.max_size <= max(cpus - 1, cpus / 2)
    assert min(proposer.num_cpus, qualifier.num_cpus) > 0
    assert all(pool.num_cpus < 1 or pool.num_cpus.is_integer() for pool in (proposer, qualifier))
    if gpus:
        per_gpu = (
            -(-proposer.max_size // gpus) * proposer.num_gpus + -(-qualifier.max_size // gpus) * qualifier.num_gpus
        )
        assert 0 < per_gpu <= 1
        assert proposer.device("auto") == "auto"
    else:
        assert proposer.num_gpus == 0
        assert (proposer.device("auto"), proposer.device("cuda:1")) == ("cpu", "cuda:1")


def test_the_number_of_actors_follows_the_cluster() -> None:
    def sizes(nodes: list[dict[str, float]], **settings: Any) -> tuple[int, int]:
        proposer, qualifier = plan_pools(nodes, AugmentConfig(**settings))
        return proposer.max_size, qualifier.max_size

    assert sizes([{"CPU": 2}]) == (2, 1)
    assert sizes([{"CPU": 16}] * 4) == (64, 11)
    assert sizes([{"CPU": 16, "GPU": 8}, {"CPU": 4}]) == (8, 2)
    assert sizes([{"CPU": 16, "GPU": 8}], proposer=ActorConfig(num_gpus=0.25)) == (32, 6)
    assert sizes([{"CPU": 16, "GPU": 8}], proposer=ActorConfig(num_gpus=0.25, num_cpus=1)) == (15, 3)
    assert sizes([{"CPU": 64}], proposer=ActorConfig(num_cpus=4)) == (15, 3)
    assert sizes([{"CPU": 64, "accelerator": 3}], proposer=ActorConfig(resources={"accelerator": 0.5})) == (6, 1)
    assert sizes([{"CPU": 64}], proposer=ActorConfig(resources={"accelerator": 0.5})) == (1, 1)  # none there yet


def test_one_actor_on_a_large_machine_has_many_threads_and_fits_one_node() -> None:
    proposer, _ = plan_pools([{"CPU": 16}, {"CPU": 4}], AugmentConfig(num_actors=1))
    assert proposer.threads == 14
    proposer, _ = plan_pools([{"CPU": 4}] * 10, AugmentConfig(num_actors=1))
    assert proposer.num_cpus == 4
    assert proposer.fits({"CPU": 4})
    assert not proposer.fits({"CPU": 2})


def test_a_pool_that_grows_starts_with_the_least() -> None:
    proposer, qualifier = plan_pools([{"CPU": 64}], AugmentConfig(min_actors=2, num_actors=12))
    assert (proposer.min_size, proposer.max_size, qualifier.min_size, qualifier.max_size) == (2, 12, 1, 2)
    assert plan_pools([{"CPU": 2}], AugmentConfig(min_actors=5))[0].max_size == 5


def test_qualifiers_leave_a_gpu_alone_that_the_user_gave_to_proposers() -> None:
    proposer, qualifier = plan_pools([{"CPU": 8, "GPU": 2}], AugmentConfig(proposer=ActorConfig(num_gpus=1)))
    assert (proposer.num_gpus, qualifier.num_gpus, qualifier.device("auto")) == (1, 0, "cpu")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_cpus": 1.5}, "num_cpus=1.5"),
        ({"num_gpus": -0.5}, "num_gpus=-0.5"),
        ({"num_cpus": 0}, "num_cpus=0"),
        ({"resources": {"accelerator": 2.5}}, "accelerator=2.5"),
    ],
)
def test_wrong_reservations_quote_the_value(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActorConfig(**setting)
