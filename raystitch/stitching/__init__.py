"""From a batch of trajectory pairs to a batch of bridges: pairs, gap, bridge, wrap-up, qualification."""
