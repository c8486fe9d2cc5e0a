"""Measure how fast a model speaks, its decoding modes side by side.

    python tools/benchmark_sts.py --output outputs/benchmark
    python tools/benchmark_sts.py --model DIR --modes vanilla turbo --output DIR
    python tools/benchmark_sts.py --random-weights configs/models/qwen2_7b_mtp10.json --tokenizer DIR \\
        --audio-decoder-path random --device cuda --output DIR

Speed does not depend on what is said, so all modes are made to answer with the same number of tokens, and random
weights do as well as trained ones. The modes take turns; the median over the repeats is reported. On a CPU, only the
ratios to the first mode are meaningful. Writes benchmark.json and benchmark.png into the output folder.
"""

import argparse
from pathlib import Path

from vita_audio.command_line import (
    OneLineParser,
    add_model_options,
    check_files,
    check_model_folder,
    in_range,
    load_audio_tokenizer,
    load_speech_lm,
    plan_name,
    quieten_transformers,
    torch_dtype,
)
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json
from vita_audio.interleave import MODES

RANDOM = "random"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("benchmark_sts", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for benchmark.json and benchmark.png")
    parser.add_argument(
        "--modes",
        type=plan_name,
        nargs="+",
        default=list(MODES),
        help="names or ratios; speed-ups are relative to the first",
    )
    parser.add_argument("--random-weights", type=Path, metavar="CONFIG", help="model config, instead of --model")
    parser.add_argument("--tokenizer", type=Path, help="text tokenizer for --random-weights; any Qwen2 one will do")
    parser.add_argument("--prompt-tokens", type=in_range(int, minimum=1), default=32, help="least length of the prompt")
    parser.add_argument(
        "--new-tokens", type=in_range(int, minimum=100), default=256, help="at least 100, a few seconds of speech"
    )
    parser.add_argument("--repeats", type=in_range(int, minimum=1), default=3, help="answers per mode")
    parser.add_argument("--seed", type=int, default=0, help="seed for random weights")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    if (options.random_weights is None) != (options.tokenizer is None):
        parser.error("--random-weights and --tokenizer belong together")
    return options


def benchmark(options: argparse.Namespace) -> None:
    """Load the model, measure its modes and write the report."""
    check_files(options.random_weights)
    if options.random_weights is None:
        check_model_folder(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    import torch

    from vita_audio.inference.benchmark import draw, measure_modes, random_audio_tokenizer, random_speech_lm, table
    from vita_audio.inference.pipeline import resolve_device

    quieten_transformers()
    torch.manual_seed(options.seed)
    device = resolve_device(options.device)
    if options.audio_decoder_path == RANDOM:
        audio_tokenizer, options.any_audio_tokenizer = random_audio_tokenizer(device, options.stream_chunks), True
    else:
        audio_tokenizer = load_audio_tokenizer(options)
    if options.random_weights is None:
        speech_lm = load_speech_lm(options, audio_tokenizer)
    else:
        dtype = torch_dtype(options.dtype)
        speech_lm = random_speech_lm(
            options.random_weights, options.tokenizer, audio_tokenizer, device=device, dtype=dtype
        )
    report = measure_modes(
        speech_lm,
        options.modes,
        num_prompt=options.prompt_tokens,
        num_new=options.new_tokens,
        repeats=options.repeats,
    )
    report = {"model": str(options.random_weights or options.model)} | report
    write_json(options.output / "benchmark.json", report)
    draw(report, options.output / "benchmark.png")
    print(table(report))


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("benchmark_sts"):
        benchmark(options)


if __name__ == "__main__":
    main()
