"""The command `authsvc`, but its index has room for one key: it looks into its database for every other one.

Usage: python -m benchmarks.rig.forgetful serve

A store of a thousand keys is asked for each as if it were the first time, as often as one likes.
"""

import sys
from functools import partial
from typing import Any, cast

from authsvc.cli import commands as cli
from authsvc.revocation import key_cache as index


def main() -> None:
    """Run the command on a service with that index."""
    cast(Any, index).CachedKeys = partial(index.CachedKeys, keys_max=1)
    cli.main(sys.argv[1:])


if __name__ == "__main__":
    main()
