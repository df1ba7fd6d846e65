"""The commands behind ``raystitch``, a file per group; each file imports what it runs only when it runs it."""

from raystitch.commands import augment, bench, buffer, completion, data, export, fit, serve, sweep, train, validate

COMMANDS = (
    data.register,
    fit.register,
    augment.register,
    buffer.register,
    validate.register,
    export.register,
    train.register,
    train.register_evaluate,
    sweep.register,
    sweep.register_report,
    serve.register,
    bench.register,
    completion.register,
)
"""In the order of the work, which is the order of ``raystitch --help``."""
