"""Encode the audio of data yaml files to codes, once, before training.

    python tools/extract_audio_codes.py --data data/demo/stage1.yaml --codes outputs/codes --processes 2

Continues an earlier run. Files that cannot be read are counted and named, and tried again in the next run.
With --ray, the processes are workers of the Ray cluster that RAY_ADDRESS names, where all machines see the audio files
under the same paths; --devices cuda gives each worker a GPU of its own. Only this program writes the database.
"""

import argparse
from functools import partial
from pathlib import Path

from vita_audio.command_line import OneLineParser, add_codec_options, check_files, in_range
from vita_audio.errors import one_line_errors, one_line_run_errors


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("extract_audio_codes", __doc__)
    add, count = parser.add_argument, in_range(int, minimum=0)
    add("--data", nargs="+", required=True, type=Path, help="data yaml files")
    add("--codes", required=True, type=Path, help="folder of the code store")
    add("--seed", type=int, default=42, help="seed of the training run, which samples sources with ratio or num")
    add_codec_options(parser, for_data=True)
    add("--processes", type=count, default=0, help="worker processes; 0: encode in this process")
    devices = "devices of the processes in turn, such as cuda:0 cuda:1 (default: the GPU if there is one)"
    add("--devices", nargs="+", default=["auto"], help=devices)
    add("--ray", action="store_true", help="encode on a Ray cluster (default without RAY_ADDRESS: Ray on this machine)")
    return parser.parse_args(arguments)


def extract(options: argparse.Namespace) -> None:
    """Encode the audio of the roles whose audio enters the model as codes."""
    check_files(*options.data)
    from vita_audio import text
    from vita_audio.audio_tokenizers import get_audio_tokenizer, is_continuous
    from vita_audio.data.codes import AudioCodeStore, extract_codes
    from vita_audio.data.mixture import load_mixture, referenced_audio
    from vita_audio.data.ray_map import map_with_ray
    from vita_audio.inference.pipeline import resolve_device

    # with Ray, a device that is named need not be in this machine
    devices = [name if options.ray and name != "auto" else resolve_device(name) for name in options.devices]
    make_tokenizer = partial(get_audio_tokenizer, options.audio_tokenizer_type, options.audio_tokenizer_path)
    by_type = text.CONTINUOUS_INPUT if is_continuous(options.audio_tokenizer_type) else text.DISCRETE_INPUT
    audio_input = text.check_audio_input(by_type | text.parse_audio_input(options.audio_input))
    roles = text.roles_with(audio_input, text.DISCRETE)
    mixtures = [load_mixture(data, options.seed) for data in options.data]
    paths = {path: None for mixture in mixtures for path in referenced_audio(mixture, roles)}
    workers = {"devices": devices, "num_workers": options.processes}
    if options.ray:
        num_gpus = int(any(device.startswith("cuda") for device in devices))
        workers |= {"num_workers": options.processes or 1, "mapper": partial(map_with_ray, num_gpus=num_gpus)}
    store = AudioCodeStore(options.codes, make_tokenizer(device="cpu").fingerprint)
    report = extract_codes(paths, store, make_tokenizer, **workers, progress=True)
    print(report.summary())
    print(f"{len(store)} entries in {store.path}")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("extract_audio_codes"), one_line_run_errors("extract_audio_codes"):
        extract(options)


if __name__ == "__main__":
    main()
