"""From a grid to trained policies: the plan, one trial, its folder, the search, the checks before."""
