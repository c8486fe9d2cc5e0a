"""What command-line programs share: the parser, options, checks of values while parsing, and loading by options.

Importing it is fast: programs answer --help and wrong arguments before they import torch or transformers.
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vita_audio.constants import AUDIO_TOKENIZER_TYPES
from vita_audio.errors import WRONG_INPUT
from vita_audio.interleave import InterleavePlan

if TYPE_CHECKING:
    import torch

    from vita_audio.audio_tokenizers import AudioTokenizer
    from vita_audio.inference.pipeline import SpeechLM

DEFAULT_MODEL = Path("outputs/quickstart/stage4")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("float32", "bfloat16", "float16")  # names in torch

T = TypeVar("T")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows the description as it is written, and the default of each option whose help does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        takes_value = action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if takes_value and "default" not in action.help else action.help


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong arguments in one line, without the usage; its help is formatted by `HelpFormatter`."""

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        super().__init__(prog=prog, description=description, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return an argument type that reports a ValueError of `parse` in the one line of the parser."""

    def convert(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


@checked
def plan_name(text: str) -> str:
    """Argument type: the name or the ratio of an interleave plan, returned as given."""
    InterleavePlan.parse(text)
    return text


def in_range(
    convert: Callable[[str], T],
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
) -> Callable[[str], T]:
    """Return an argument type for a number in a range; `convert` is int or float."""
    rules = [("at least", minimum, operator.ge), ("above", above, operator.gt), ("at most", maximum, operator.le)]
    rules = [rule for rule in rules if rule[1] is not None]

    def parse(text: str) -> T:
        value = convert(text)
        if not all(holds(value, bound) for _, bound, holds in rules):
            raise ValueError(f"must be {' and '.join(f'{words} {bound:g}' for words, bound, _ in rules)}, got {text}")
        return value

    return checked(parse)


def add_codec_options(parser: argparse.ArgumentParser, *, decoder: bool = True) -> None:
    """Add the options that choose an audio tokenizer and, with `decoder`, its speech decoder."""
    parser.add_argument(
        "--audio-tokenizer-type",
        default="glm4voice",
        choices=AUDIO_TOKENIZER_TYPES,
        metavar="TYPE",
        help=", ".join(AUDIO_TOKENIZER_TYPES),
    )
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    if decoder:
        parser.add_argument("--audio-decoder-path", help="folder of the speech decoder (default: the embedded one)")


def add_audio_input_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that overrides how the audio of a role enters the model."""
    parser.add_argument(
        "--audio-input",
        nargs="+",
        default=[],
        metavar="ROLE=HOW",
        help="how the audio of a role enters the model: discrete, continuous or both (default: as the types say)",
    )


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device; `vita_audio.inference.pipeline.resolve_device` reads its value."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """Add --dtype; `torch_dtype` reads its value."""
    parser.add_argument(
        "--dtype", choices=DTYPES, help="type of the weights (default: bfloat16 on a GPU, else float32)"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `load_audio_tokenizer` and `load_speech_lm`."""
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="folder of a model, or hub name")
    parser.add_argument("--offline", action="store_true", help="do not download; hub names need an earlier download")
    add_codec_options(parser)
    parser.add_argument(
        "--audio-model-path", help="SenseVoiceSmall folder, for a Plus model whose own folder lacks am.mvn"
    )
    parser.add_argument(
        "--any-audio-tokenizer", action="store_true", help="accept an audio tokenizer the model was not trained with"
    )
    parser.add_argument(
        "--stream-chunks",
        type=in_range(int, minimum=1),
        nargs="+",
        help="codes in the first, second, ... piece of streamed audio",
    )
    add_device_option(parser)
    parser.add_argument("--device-map", help="auto: spread the model over GPUs and memory, in place of --device")
    add_dtype_option(parser)
    parser.add_argument("--attn-implementation", choices=ATTENTION, help="attention implementation (default: sdpa)")


def torch_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype of one of `DTYPES`; None for None."""
    import torch

    return name and getattr(torch, name)


def load_audio_tokenizer(options: argparse.Namespace) -> AudioTokenizer:
    """Load the audio tokenizer that the options of `add_model_options` choose."""
    from vita_audio.audio_tokenizers import get_audio_tokenizer
    from vita_audio.inference.pipeline import resolve_device

    more = {"stream_chunks": options.stream_chunks} if options.stream_chunks else {}
    return get_audio_tokenizer(
        options.audio_tokenizer_type,
        options.audio_tokenizer_path,
        options.audio_decoder_path,
        device=resolve_device(options.device),
        offline=options.offline,
        **more,
    )


def load_speech_lm(options: argparse.Namespace, audio_tokenizer: AudioTokenizer) -> SpeechLM:
    """Load the model that the options of `add_model_options` choose.

    Raises: ValueError if flash attention is not available.
    """
    from transformers.utils import is_flash_attn_2_available

    from vita_audio.inference.pipeline import SpeechLM

    if options.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("--attn-implementation flash_attention_2 needs a GPU and the package flash-attn; leave it out")
    chosen = {"device_map": options.device_map, "attn_implementation": options.attn_implementation}
    return SpeechLM.from_pretrained(
        options.model,
        audio_tokenizer,
        options.device,
        torch_dtype(options.dtype),
        audio_model=options.audio_model_path,
        offline=options.offline,
        any_audio_tokenizer=options.any_audio_tokenizer,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def check_files(*paths: Path | None) -> None:
    """Raise FileNotFoundError for the first path that is not a file; None is skipped."""
    for path in paths:
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")


def check_model_folder(folder: Path) -> None:
    """Raise FileNotFoundError if `folder` is the default model and missing; other folders are checked by loading."""
    if folder == DEFAULT_MODEL and not folder.exists():
        raise FileNotFoundError(f"no model in {folder}; bash scripts/quickstart.sh trains it, or give --model DIR")


def quieten_transformers() -> None:
    """Turn off the progress bars and hints of transformers."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
