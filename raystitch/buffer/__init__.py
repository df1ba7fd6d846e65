"""The buffer of candidates: schema, shards, reading at a delta, whole episodes, export.

A change of columns is a new schema version (docs/files.md). tests/buffer tells when it broke.
"""
