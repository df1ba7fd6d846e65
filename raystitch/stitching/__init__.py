"""From a batch of trajectory pairs to a batch of bridges: pairs, gap, bridge, wrap-up, qualification.

Pair selectors and gap estimators are registries. A row depends on its pair and its seed alone: tests/stitching.
"""
