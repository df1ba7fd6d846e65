"""Opens a buffer for reading."""

import os
from collections.abc import Collection

from raystitch.buffer.meta import read_meta
from raystitch.buffer.reader import Buffer
from raystitch.buffer.shard_file import read_shard_file
from raystitch.buffer.survey import list_shards
from raystitch.buffer.ways import WAYS_FILE, Ways
from raystitch.errors import UserError
from raystitch.io.storage import Storage


def open_buffer(
    uri: str | os.PathLike[str],
    *,
    allow_partial: bool = False,
    num_shards: int | None = None,
    without: Collection[str] = (),
) -> Buffer:
    """Opens a buffer for reading.

    Args:
        allow_partial: also open one whose generation never finished (its shards so far).
        num_shards: only the first this many, those of closed rounds, whether or not later ones are there.
        without: names of damaged files to look past; the shards that are lost by it may be missing.

    Raises:
        UserError: when it is not a buffer, damaged, unfinished or empty.

    Examples:
        >>> buffer = rs.open_buffer("buffer")  # or s3://bucket/buffer
        >>> buffer.num_accepted("q50") <= buffer.num_accepted("q99") <= buffer.num_candidates
        True
    """
    storage = Storage(uri)
    meta = read_meta(storage)
    shards = list_shards(uri, without)
    finished = num_shards is None and meta.complete is not None
    if num_shards is None and meta.complete is not None:
        num_shards = meta.complete.num_shards
    if num_shards is None and not allow_partial:
        raise UserError(
            f"{uri} is unfinished ({len(shards)} shards so far); run `raystitch augment` with the same arguments again"
        )
    if num_shards is not None:
        wanted = range(num_shards)
        missing = [shard for shard in wanted if shard not in shards]
        if missing and not without:
            raise UserError(
                f"{uri} is damaged: shard {missing[0]} is missing; "
                "run `raystitch augment` with the same arguments to generate it again"
            )
        shards = {shard: shards[shard] for shard in wanted if shard in shards}
    buffer = Buffer(storage, meta, [read_shard_file(storage, name) for name in dict.fromkeys(shards.values())])
    if finished and not without and meta.stitch.pairs.split == "value" and meta.rounds:
        buffer.ways = Ways.read(storage)
        if buffer.ways is None:
            raise UserError(
                f"{uri} is damaged: {WAYS_FILE} is missing; run `raystitch augment` with the same arguments to write "
                "it again"
            )
    if buffer.num_candidates == 0 and not allow_partial:
        raise UserError(f"{uri} is empty: it holds no candidate; generate it with `raystitch augment`")
    return buffer
