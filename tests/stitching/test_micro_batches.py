import numpy as np
import pytest
import torch

from raystitch.errors import RunError
from raystitch.stitching.stitcher import MicroBatches


def test_portions_cover_the_rows_once() -> None:
    portions = MicroBatches(4).run(10, lambda rows: rows)
    assert [len(rows) for rows in portions] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(portions), np.arange(10))
    assert [rows.tolist() for rows in MicroBatches(4).run(0, lambda rows: rows)] == [[]]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("can't allocate memory: 9 TB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_portion_and_goes_on(error: Exception) -> None:
    batches, sizes = MicroBatches(8), list[int]()

    def work(rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        if len(rows) > 3:
            raise error
        return rows

    np.testing.assert_array_equal(np.concatenate(batches.run(9, work)), np.arange(9))
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    batches.run(4, work)
    assert sizes[7:] == [2, 2]  # the size that fitted is kept


def test_a_real_allocation_that_cannot_succeed() -> None:
    def work(rows: np.ndarray) -> int:
        return torch.empty(1 << 46 if len(rows) > 1 else 1).numel()

    assert MicroBatches(2).run(2, work) == [1, 1]


def test_other_errors_pass_through_and_a_single_row_gives_up() -> None:
    def wrong(rows: np.ndarray) -> None:
        raise RuntimeError("shapes differ")

    def never(rows: np.ndarray) -> None:
        raise MemoryError

    with pytest.raises(RuntimeError, match="shapes differ"):
        MicroBatches(4).run(4, wrong)
    with pytest.raises(RunError, match="single bridge"):
        MicroBatches(4).run(4, never)
