"""How far a run is, from the files in its folder: for ``raystitch status`` and for the report of an unfinished run.

Nothing here imports torch or ray, takes a lock or writes, but for ``progress``, with which the driver of a run writes.
tests/cluster/test_status.py tells when it broke.
"""
