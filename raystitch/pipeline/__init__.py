"""The compositions, in one process and without ray: fit, augment, validate, train, sweep plan."""
