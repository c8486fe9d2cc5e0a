"""What the tools that run a model share: options, loading, and one line instead of a traceback for wrong input."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

import torch
from transformers.utils import is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.errors import WRONG_INPUT
from vita_audio.inference.pipeline import SpeechLM, resolve_device

DEFAULT_MODEL = Path("outputs/quickstart/stage4")
ATTENTION = ("eager", "sdpa", "flash_attention_2")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line; the usage is for --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; see --help\n")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, default=DEFAULT_MODEL, help="folder of a model, or hub name (default: %(default)s)"
    )
    parser.add_argument("--offline", action="store_true", help="take what has a hub name from earlier downloads")
    parser.add_argument("--audio-tokenizer-type", default="glm4voice", help="default: %(default)s")
    parser.add_argument("--audio-tokenizer-path", help="folder of its weights (default: the embedded ones)")
    parser.add_argument("--audio-decoder-path", help="folder of the speech decoder (default: the embedded one)")
    parser.add_argument(
        "--audio-model-path", help="SenseVoiceSmall folder, for a Plus model whose own folder lacks its am.mvn"
    )
    parser.add_argument(
        "--any-audio-tokenizer", action="store_true", help="also one that the model was not trained with"
    )
    parser.add_argument(
        "--stream-chunks", type=int, nargs="+", help="codes in the first, second, ... piece of streamed audio"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    parser.add_argument("--device-map", help="auto: spread the model over GPUs and memory, in place of --device")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: bfloat16 on a GPU, else float32)")
    parser.add_argument("--attn-implementation", choices=ATTENTION, help="attention back end (default: sdpa)")


def load_audio_tokenizer(options: argparse.Namespace) -> AudioTokenizer:
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
    if options.attn_implementation == "flash_attention_2" and not is_flash_attn_2_available():
        raise ValueError("--attn-implementation flash_attention_2 needs a GPU and the package flash-attn; leave it out")
    chosen = {"device_map": options.device_map, "attn_implementation": options.attn_implementation}
    return SpeechLM.from_pretrained(
        options.model,
        audio_tokenizer,
        options.device,
        DTYPES.get(options.dtype),
        audio_model=options.audio_model_path,
        offline=options.offline,
        any_audio_tokenizer=options.any_audio_tokenizer,
        **{name: value for name, value in chosen.items() if value is not None},
    )


def check_model_folder(folder: Path) -> None:
    """Raise FileNotFoundError for the default model if there is none yet; other folders are checked by loading."""
    if folder == DEFAULT_MODEL and not folder.exists():
        raise FileNotFoundError(f"no model in {folder}; bash scripts/quickstart.sh trains it, or give --model DIR")


def quieten_transformers() -> None:
    """Leave out its progress bars and hints."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
