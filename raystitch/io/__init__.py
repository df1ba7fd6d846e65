"""Files that exist whole or not at all, and the places where they lie: storage, cache, leases, the YAML reader.

A leaf: it imports only errors and the console. tests/files and tests/buffer tell when it broke.
"""
