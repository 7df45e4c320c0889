"""The command line of vmae-train.

Worker processes import the module that started the program. They need no commands, so `main` imports these.
"""

from __future__ import annotations

from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    from vmae_data.processes import stop_with_torchrun

    stop_with_torchrun()
    from vmae_data.console import run_app
    from vmae_train.commands.app import app

    run_app(app, "vmae-train")


if __name__ == "__main__":
    main()
