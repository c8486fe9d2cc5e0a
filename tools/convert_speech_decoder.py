"""Convert the weights of a speech decoder to safetensors, which load faster and contain no code.

    python tools/convert_speech_decoder.py glm-4-voice-decoder outputs/decoder --dtype float16

Reads `config.yaml`, `flow.pt` and `hift.pt` (or `.safetensors`) as released, without running any code in them.
"""

import argparse
from pathlib import Path

from vita_audio.command_line import DTYPES, OneLineParser
from vita_audio.errors import one_line_errors
from vita_audio.files.checkpoint import find_checkpoint


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("convert_speech_decoder", __doc__)
    parser.add_argument("source", help="folder of the decoder, or its name on the hub")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="type of the weights")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("convert_speech_decoder"):
        if options.output.exists() and any(options.output.iterdir()):
            raise FileExistsError(f"{options.output} is not empty; give another folder")
        source = find_checkpoint(options.source)
        import torch

        from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder

        SpeechDecoder.from_pretrained(source).save_pretrained(options.output, getattr(torch, options.dtype))
    for path in sorted(options.output.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
