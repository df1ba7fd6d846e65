"""Generation of a buffer of bridges, shard by shard, in one process and without Ray."""
