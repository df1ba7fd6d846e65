"""The commands behind ``raystitch``, a file per group; a file imports what it runs only when it runs it.

tests/cli and tests/contract/test_cli_bad_input.py tell when one broke.
"""

from raystitch.commands import augment, bench, buffer, data, export, fit, serve, status, study, sweep, train, validate

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
    status.register,
    sweep.register_report,
    study.register,
    serve.register,
    bench.register,
)
"""In the order of the work and of ``raystitch --help``. cli.py adds ``completion``, which needs all of them."""
