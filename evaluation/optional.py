"""Packages that only some figures or judges need."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from vita_audio.optional import MissingPackageError


def require(module: str, *, purpose: str, install: str) -> ModuleType:
    """Import a module of a package that `purpose` needs; `install` is what pip installs it by.

    Raises: MissingPackageError, an ImportError, that says what to install.
    """
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that the package needs is absent
        package = module.partition(".")[0]
        raise MissingPackageError(f"{purpose} needs the package {package} ({error}); pip install {install}") from error
