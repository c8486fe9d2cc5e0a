"""How the packages of other audio tokenizers are imported."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from types import ModuleType


class MissingPackageError(ImportError):
    """A package that only some need is not installed; the message says how to."""


def import_optional(module: str, *, extra: str, unused: Sequence[str] = ()) -> ModuleType:
    """Import a module of a package that comes with an extra of this one.

    Args:
        unused: Modules that the package imports for what nobody here asks of it. Where they are absent, or broken, as
            torchaudio is beside many a torch, an empty one takes their place during the import.
    Raises: MissingPackageError, an ImportError.
    """
    with ExitStack() as stack:
        for name in unused:
            stack.enter_context(_stand_in(name))
        try:
            return import_module(module)
        except ImportError as error:
            package = module.partition(".")[0]
            raise MissingPackageError(
                f"the audio tokenizer {extra} needs the package {package} ({error}); pip install 'vita-audio[{extra}]'"
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
