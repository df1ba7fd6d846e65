"""``python -m raystitch.sweep [CONFIG] [--set key=value]``: the same as ``raystitch sweep``."""

import sys

from raystitch.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
