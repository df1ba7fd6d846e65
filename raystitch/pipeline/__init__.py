"""The stages as functions in one process, without Ray: generate a buffer, train trials, validate bridges.

``raystitch.cluster`` distributes these functions. tests/pipeline tells when they broke.
"""
