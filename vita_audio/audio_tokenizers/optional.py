"""What audio tokenizers of other packages share: importing the package, and loading weights into its model."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vita_audio.checkpoints.files import check_whole


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


def read_torch_weights(path: Path) -> dict[str, Tensor]:
    """Read a `.safetensors` file or a pickled state dict; numbers become float32.

    Raises: FileNotFoundError; ValueError naming the file and what is wrong with it.
    """
    check_whole(path)
    try:
        weights = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    except Exception as error:
        raise ValueError(f"{path} cannot be read as weights: {error}") from error


def load_torch_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Fill a model, which may be on the meta device, with the weights of a file.

    Raises: ValueError naming the file and what is missing, unexpected or of another shape.
    """
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error
