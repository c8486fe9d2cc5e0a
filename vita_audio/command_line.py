"""Shared parts of command-line programs: the parser, options, argument types, and loading by options.

Imports neither torch nor transformers, so that programs answer --help and wrong arguments fast.
"""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vita_audio.constants import AUDIO_TOKENIZER_TYPES
from vita_audio.errors import WRONG_INPUT
from vita_audio.files.checkpoint import find_checkpoint
from vita_audio.interleave import InterleavePlan

if TYPE_CHECKING:
    from vita_audio.audio_tokenizers import AudioTokenizer
    from vita_audio.inference.pipeline import SpeechLM

DEFAULT_MODEL = Path("outputs/quickstart/stage4")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = ("float32", "bfloat16", "float16")  # names in torch
QUANTIZATIONS = ("int8", "int4")
DECODING = ("acceptance", "mtp_head", "first_chunk")  # options of `add_decoding_options`, arguments of `SpeechLM`

T = TypeVar("T")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the layout of the description, and adds the default of each option whose help does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        takes_value = action.nargs != 0 and action.default not in (None, "", [], argparse.SUPPRESS)
        return f"{action.help} (default: %(default)s)" if takes_value and "default" not in action.help else action.help


class OneLineParser(argparse.ArgumentParser):
    """Reports wrong arguments in one line, without the usage; formats its help with `HelpFormatter`."""

    def __init__(self, prog: str | None = None, description: str | None = None, **options: Any):
        super().__init__(prog=prog, description=description, **{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return an argument type whose error message is the text of the ValueError that `parse` raises."""

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
    convert: Callable[[str], T], *, minimum: float = -math.inf, above: float = -math.inf, maximum: float = math.inf
) -> Callable[[str], T]:
    """Return an argument type for a number in a range; `convert` is int or float."""
    rules = [("at least", minimum, operator.ge), ("above", above, operator.gt), ("at most", maximum, operator.le)]
    rules = [rule for rule in rules if math.isfinite(rule[1])]

    def parse(text: str) -> T:
        value = convert(text)
        if not all(holds(value, bound) for _, bound, holds in rules):
            raise ValueError(f"must be {' and '.join(f'{words} {bound:g}' for words, bound, _ in rules)}, got {text}")
        return value

    return checked(parse)


def add_codec_options(parser: argparse.ArgumentParser, *, for_data: bool = False) -> None:
    """Add the options that choose an audio tokenizer, and its speech decoder or, with `for_data`, its roles."""
    types = {"choices": AUDIO_TOKENIZER_TYPES, "help": ", ".join(AUDIO_TOKENIZER_TYPES)}
    parser.add_argument("--audio-tokenizer-type", default="glm4voice", metavar="TYPE", **types)
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    if for_data:
        ways = "how the audio of a role enters the model: discrete, continuous or both (default: depends on the type)"
        parser.add_argument("--audio-input", nargs="+", default=[], metavar="ROLE=HOW", help=ways)
    else:
        decoder = "folder of the speech decoder (default: the embedded one for the embedded tokenizer)"
        parser.add_argument("--audio-decoder-path", help=decoder)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device; `vita_audio.inference.pipeline.resolve_device` reads its value."""
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")


def add_dtype_option(parser: argparse.ArgumentParser) -> None:
    """Add --dtype, the name of a dtype in torch."""
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of weights (default: bfloat16 on a GPU, else float32)")


def add_decoding_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how tokens of MTP modules are made and verified, see `decoding_options`."""
    add = parser.add_argument
    share = in_range(float, minimum=0, maximum=1)
    agreement = "how far the modules' tokens must agree with the backbone: 0 not at all, 1 exactly"
    add("--acceptance", type=share, help=f"{agreement} (default: the model's, else 0)")
    head = "tokens that the modules score: all, or audio only (default: audio where it cannot change the answer)"
    add("--mtp-head", choices=("full", "audio"), help=head)
    first = "whether the modules' first tokens wait for their verification (default: verified)"
    add("--first-chunk", choices=("verified", "committed"), help=first)


def decoding_options(
    parser: argparse.ArgumentParser, options: argparse.Namespace, modes: Sequence[str | None]
) -> dict[str, Any]:
    """Return the given options of `add_decoding_options` as arguments of `SpeechLM.respond`.

    Args:
        modes: Modes to decode in; None is the model's own.
    """
    given = {name: value for name in DECODING if (value := getattr(options, name)) is not None}
    plans = [InterleavePlan.parse(mode) for mode in modes if mode is not None]
    if options.acceptance and plans and len(plans) == len(modes) and not any(plan.has_modules for plan in plans):
        parser.error(f"--acceptance needs a mode with MTP steps, such as boost, got {' '.join(map(str, plans))}")
    return given


def named_adapter(text: str) -> tuple[str, str]:
    """Argument type: [NAME=]FOLDER, returned as name and folder; without a name, it is the folder's."""
    name, separator, folder = text.partition("=")
    if not separator or "/" in name or Path(text).exists():
        name, folder = folder_name(text), text
    if not (name.strip(".") and folder):
        raise argparse.ArgumentTypeError(f"must be the folder of an adapter, or NAME=FOLDER, got {text!r}")
    return name, folder


def folder_name(path: str | Path) -> str:
    """Return the last part of a path or hub name."""
    return Path(path).expanduser().resolve().name


def add_adapter_option(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add --adapter, whose value is a list of names and folders, with at most one element unless `several`."""
    about = "an adapter on --model, which is merged into it (an adapter alone can be given as --model)"
    more = "; several, which share it in memory, are loaded with the base, each under its name (default: the folder's)"
    add = partial(parser.add_argument, "--adapter", default=[])
    if several:
        add(type=named_adapter, nargs="+", action="extend", metavar="[NAME=]FOLDER", help=about + more)
    else:
        add(type=lambda folder: (folder_name(folder), folder), nargs=1, metavar="FOLDER", help=about)


def chosen_models(options: argparse.Namespace) -> dict[str, str | None]:
    """Return the adapters of the models that are to be loaded, by the names of the models; None for the base.

    Raises: ValueError for a name that two models have.
    """
    if len(options.adapter) == 1:
        return dict(options.adapter)
    models = [(folder_name(options.model), None), *options.adapter]
    names = [name for name, _ in models]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"--adapter: the names of adapters must differ from each other and from the base's, got {twice[0]} twice; "
            "give NAME=FOLDER"
        )
    return dict(models)


def adapter_folder(options: argparse.Namespace) -> str | None:
    """Return the folder of a single adapter, which is merged into the model; None for none or several."""
    return options.adapter[0][1] if len(options.adapter) == 1 else None


def add_model_options(parser: argparse.ArgumentParser, *, several_adapters: bool = False) -> None:
    """Add the options of `load_audio_tokenizer`, and of `load_speech_lm` or `load_speech_lms`."""
    add, positive = parser.add_argument, in_range(int, minimum=1)
    add("--model", type=Path, default=DEFAULT_MODEL, help="folder or hub name of a model")
    add_adapter_option(parser, several=several_adapters)
    add("--offline", action="store_true", help="do not download; hub names need an earlier download")
    add_codec_options(parser)
    add("--audio-model-path", help="SenseVoiceSmall folder, for a Plus model whose own folder lacks am.mvn")
    add("--any-audio-tokenizer", action="store_true", help="accept an audio tokenizer the model was not trained with")
    add("--stream-chunks", type=positive, nargs="+", help="codes in the first, second, ... piece of streamed audio")
    add_device_option(parser)
    add("--device-map", help="auto: spread the model over GPUs and memory, in place of --device")
    add_dtype_option(parser)
    add("--quantize", choices=QUANTIZATIONS, help="quantize the weights once loaded; int4 only on a GPU (default: no)")
    add("--attn-implementation", choices=ATTENTION, help="attention implementation (default: sdpa)")


def load_audio_tokenizer(options: argparse.Namespace) -> AudioTokenizer:
    """Load the audio tokenizer chosen by the options of `add_model_options`."""
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
    """Load the model chosen by the options of `add_model_options`.

    Raises: ValueError if flash attention is not available.
    """
    from vita_audio.inference.pipeline import SpeechLM

    check_attention(options.attn_implementation)
    chosen = {"device_map": options.device_map, "attn_implementation": options.attn_implementation}
    return SpeechLM.from_pretrained(
        options.model,
        audio_tokenizer,
        options.device,
        options.dtype,
        audio_model=options.audio_model_path,
        offline=options.offline,
        any_audio_tokenizer=options.any_audio_tokenizer,
        quantize=options.quantize,
        adapter=adapter_folder(options),
        **{name: value for name, value in chosen.items() if value is not None},
    )


def load_speech_lms(options: argparse.Namespace, audio_tokenizer: AudioTokenizer) -> dict[str, SpeechLM]:
    """Load the models chosen by the options of `add_model_options` with several adapters; return them by name.

    Raises: As `load_speech_lm` and `chosen_models`; ValueError for options that exclude several adapters.
    """
    adapters = chosen_models(options)
    for flag in ("device_map", "quantize"):
        if len(adapters) > 1 and getattr(options, flag) is not None:
            raise ValueError(f"--{flag.replace('_', '-')} takes one --adapter, got {', '.join(adapters)}")
    for adapter in filter(None, adapters.values()):
        find_checkpoint(adapter, offline=options.offline)  # raises before the base is loaded
    base = load_speech_lm(options, audio_tokenizer)
    same = {"offline": options.offline, "any_audio_tokenizer": options.any_audio_tokenizer}
    return load_adapters(base, adapters, audio_model=options.audio_model_path, **same)


def load_adapters(base: SpeechLM, adapters: Mapping[str, str | None], **options: Any) -> dict[str, SpeechLM]:
    """Load the adapters of `chosen_models` on a base, into which a single one is merged already.

    Args:
        options: Arguments of `SpeechLM.with_adapter`.
    """
    return {
        name: base if adapter is None or len(adapters) == 1 else base.with_adapter(adapter, **options)
        for name, adapter in adapters.items()
    }


def check_attention(implementation: str | None) -> None:
    """Raise ValueError for flash attention if it is not available."""
    if implementation != "flash_attention_2":
        return
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise ValueError("--attn-implementation flash_attention_2 needs a GPU and the package flash-attn; leave it out")


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
