"""Import optional packages, which only some codecs, judges or metrics need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType


class MissingPackageError(ImportError):
    """An optional package is not installed, or does not work; the message says what to install."""


def require(module: str, *, purpose: str, install: str, unused: Sequence[str] = ()) -> ModuleType:
    """Import a module of an optional package.

    Args:
        purpose: The feature that needs the package, for the message.
        install: Argument of `pip install` that installs the package.
        unused: Modules that the package imports but whose functions we never call. If one is missing or broken, as
            torchaudio often is with another version of torch, an empty module replaces it during the import.
    Raises: MissingPackageError, an ImportError.
    """
    replaced = []
    for name in unused:
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError):
            sys.modules[name] = ModuleType(name)
            replaced.append(name)
    try:
        return import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that the package needs is absent
        package = module.partition(".")[0]
        raise MissingPackageError(f"{purpose} needs the package {package} ({error}); pip install {install}") from error
    finally:
        for name in replaced:
            del sys.modules[name]
