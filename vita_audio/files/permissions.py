"""Permissions of saved weights."""

from pathlib import Path
from uuid import uuid4


def restore_permissions(folder: Path) -> None:
    """Give the safetensors files in a folder the permissions that every new file there gets.

    safetensors writes files that only their owner can read, whatever the umask, so that a server with its own account
    could not load a trained model (safetensors 0.8.0, https://github.com/safetensors/safetensors/issues/782).
    """
    probe = folder / f".{uuid4().hex}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.glob("*.safetensors"):
        path.chmod(mode)
