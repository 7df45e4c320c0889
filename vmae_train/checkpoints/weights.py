"""Weights as a safetensors file: written beside, synced, named; large ones without a second copy in memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from stat import S_IMODE

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import VmaeError
from vmae_data.storage import commit_file, temporary_beside, write_error

__all__ = ["write_weights"]


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """The file is there whole or not at all, for whom the umask lets read it. Raises VmaeError when the disk says no."""
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(b"")
        mode = temporary.stat().st_mode  # as the umask has it; to ask for a umask is to set it, for every thread
        safetensors.torch.save_file(state, temporary, metadata=metadata)
        if temporary.stat().st_mode != mode:  # since 0.8 safetensors puts a file of its own there, for its owner alone
            temporary.chmod(S_IMODE(mode))
        commit_file(temporary, path)
    except SafetensorError as error:
        raise VmaeError(f"{path}: can't be written ({error}); check the folder and its room") from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
