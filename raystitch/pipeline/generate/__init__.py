"""From pairs to a buffer of bridges, shard by shard, in one process and without Ray.

The ledger decides what is still to be made. tests/pipeline/test_chain_rounds.py tells when it broke.
"""
