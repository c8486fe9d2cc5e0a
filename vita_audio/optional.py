"""Import of optional packages, which only some codecs, judges or metrics need."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType


class MissingPackageError(ImportError):
    """An optional package is not installed, or does not work; the message says what to install."""


def require(module: str, *, purpose: str, install: str, unused: Sequence[str] = ()) -> ModuleType:
    """Import a module of an optional package.

    Args:
        purpose: What needs the package, for the message.
        install: Argument of `pip install` that brings the package.
        unused: Modules that the package imports but whose functions we never call. Where one is missing or broken, as
            torchaudio often is next to another version of torch, an empty module stands in for it during the import.
    Raises: MissingPackageError, an ImportError.
    """
    with ExitStack() as stack:
        for name in unused:
            stack.enter_context(_stand_in(name))
        try:
            return import_module(module)
        except (ImportError, OSError) as error:  # OSError: a shared library that the package needs is absent
            package = module.partition(".")[0]
            raise MissingPackageError(
                f"{purpose} needs the package {package} ({error}); pip install {install}"
            ) from error


@contextmanager
def _stand_in(name: str) -> Iterator[None]:
    """Let `import name` succeed, with an empty module if there is no working one."""
    try:
        import_module(name)
    except (ImportError, OSError, RuntimeError):
        sys.modules[name] = ModuleType(name)
        try:
            yield
        finally:
            del sys.modules[name]
    else:
        yield
