"""The command line of vmae-shard.

Worker processes import the module that started the program. They need no commands, so `main` imports these.
"""

from __future__ import annotations

import os
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    # When numpy is imported, its OpenBLAS starts a thread a core, which spins for work. Here it has next to none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from vmae_data.commands.app import app
    from vmae_data.console import run_app

    run_app(app, "vmae-shard")


if __name__ == "__main__":
    main()
