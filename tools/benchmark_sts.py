"""Compare the speed and latency of a model's decoding modes, also with those of an earlier checkout in the same run.

    python tools/benchmark_sts.py --output outputs/benchmark
    python tools/benchmark_sts.py --model DIR --modes vanilla turbo --batch-sizes 1 16 --output DIR
    python tools/benchmark_sts.py --mtp-head audio --compare-with ../earlier --compare-dtype bfloat16 --output DIR
    python tools/benchmark_sts.py --random-weights configs/models/qwen2_7b_mtp10.json --tokenizer DIR \\
        --audio-decoder-path random --device cuda --output DIR
    python tools/benchmark_sts.py --server http://localhost:8000 --recordings QUESTION.wav --output DIR

All answers are forced to the same length, streamed and verified ones also to the layout of training data. Unless tokens
are verified, speed does not depend on the content, so random weights serve as well as trained ones. The modes take
turns, and so do the builds that are compared, each in a process of its own; the median over the repeats is reported. On
a CPU, time is CPU time of one thread, which other programs disturb less. Writes benchmark.json and benchmark.png into
the output folder.

With --server, questions are asked aloud and in real time at a running `vita_audio.serve`; the time from the end of
speech to the first sound, with its parts, and the real-time factor are those of its client. Writes benchmark.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vita_audio.command_line import (
    DTYPES,
    QUANTIZATIONS,
    OneLineParser,
    adapter_folder,
    add_decoding_options,
    add_model_options,
    check_attention,
    check_files,
    check_model_folder,
    decoding_options,
    in_range,
    plan_name,
)
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json
from vita_audio.interleave import MODES
from vita_audio.plots import new_figure
from vita_audio.workers import ROOT, THIS, checkout_folder, run_worker

WORKER = ROOT / "tools" / "common" / "decoding_speed.py"
SERVER_WORKER = ROOT / "tools" / "common" / "server_latency.py"
RANDOM = "random"  # as --audio-decoder-path
COLUMNS = {  # metric of a mode -> heading, format
    "tokens_per_second": ("tokens/s", ".1f"),
    "speedup": ("speed-up", ".2f"),
    "backbone_passes_per_token": ("passes/token", ".3f"),
    "tokens_per_pass": ("tokens/pass", ".2f"),
    "first_audio_ms": ("first audio ms", ".0f"),
    "real_time_factor": ("real-time factor", ".3f"),
    "peak_gpu_memory_mib": ("GPU MiB", ".0f"),
}
SERVER_OPTIONS = {"server", "recordings", "turns", "token_file", "output"}
SERVER_COLUMNS = {  # metric of a server -> heading
    "total_ms": "first sound, ms",
    "detection_ms": "turn detection, ms",
    "encoder_ms": "encoder, ms",
    "model_ms": "language model, ms",
    "decoder_ms": "decoder, ms",
    "rest_ms": "rest, ms",
    "early_ms": "done ahead, ms",  # of encoder, model and decoder
    "real_time_factor": "real-time factor",
}
RATIOS = ("tokens_per_second", "first_audio_ms", "real_time_factor")  # metrics that are compared between builds


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("benchmark_sts", __doc__)
    add, modes, positive = parser.add_argument, list(MODES), in_range(int, minimum=1)
    add("--output", type=Path, required=True, help="folder for benchmark.json and benchmark.png")
    add(
        "--modes", type=plan_name, nargs="+", default=modes, help="names or ratios; speed-ups are relative to the first"
    )
    add("--random-weights", type=Path, metavar="CONFIG", help="model config, instead of --model")
    add("--tokenizer", type=Path, help="text tokenizer for --random-weights; any Qwen2 tokenizer works")
    add("--prompt-tokens", type=positive, default=32, help="minimum length of the prompt")
    add("--new-tokens", type=in_range(int, minimum=100), default=256, help="at least 100, a few seconds of speech")
    add("--batch-sizes", type=positive, nargs="+", default=[1], help="answers generated together; streams are single")
    add("--repeats", type=positive, default=3, help="answers per mode")
    add("--seed", type=int, default=0, help="seed for random weights")
    compared = "an earlier checkout to measure too, without --quantize and the options of verified decoding"
    add("--compare-with", type=checkout_folder, metavar="FOLDER", help=compared)
    add("--compare-dtype", choices=DTYPES, help="measure weights of this dtype too")
    add("--compare-quantize", choices=QUANTIZATIONS, help="measure weights quantized in this way too")
    add_decoding_options(parser)
    add_model_options(parser)
    add_server_options(parser)
    options = parser.parse_args(arguments)
    if options.server:
        others = {name for name, value in vars(options).items() if value != parser.get_default(name)} - SERVER_OPTIONS
        if others:
            parser.error(f"--server measures a server as it runs; leave out --{min(others).replace('_', '-')}")
    if (options.random_weights is None) != (options.tokenizer is None):
        parser.error("--random-weights and --tokenizer belong together")
    if options.random_weights and options.device_map:
        parser.error("--random-weights are on one device; give --device in place of --device-map")
    options.decoding = decoding_options(parser, options, options.modes)
    return options


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for a running server."""
    group = parser.add_argument_group("a running server")
    group.add_argument("--server", metavar="URL", type=lambda url: url.rstrip("/"), help="measure it, not a model")
    recordings = "questions in sound files, asked in turn (default: one that the server speaks itself)"
    group.add_argument("--recordings", type=Path, nargs="+", default=[], metavar="FILE", help=recordings)
    group.add_argument("--turns", type=in_range(int, minimum=1), default=50, help="questions to ask")
    group.add_argument("--token-file", type=Path, help="file with the token of the server")


def worker_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the worker as JSON values, see `tools.common.decoding_speed.Settings`."""
    names = ("device", "dtype", "quantize", "modes", "batch_sizes", "decoding", "prompt_tokens", "new_tokens", "seed")
    settings = {name: getattr(options, name) for name in names}
    audio = {"name": options.audio_tokenizer_type, "path": _path(options.audio_tokenizer_path)}
    audio |= {"decoder_path": _path(options.audio_decoder_path), "offline": options.offline}
    audio |= {"stream_chunks": options.stream_chunks} if options.stream_chunks else {}
    any_audio = options.any_audio_tokenizer or options.audio_decoder_path == RANDOM
    loading = {"offline": options.offline, "any_audio_tokenizer": any_audio}
    chosen = {"audio_model": _path(options.audio_model_path), "device_map": options.device_map}
    chosen |= {"attn_implementation": options.attn_implementation, "adapter": _path(adapter_folder(options))}
    loading |= {name: value for name, value in chosen.items() if value is not None}
    if options.random_weights is None:
        weights = {"model": _path(options.model)}
    else:
        weights = {"config": _path(options.random_weights), "tokenizer": _path(options.tokenizer)}
    return settings | weights | {"audio": audio, "loading": loading}


def _path(value: str | Path | None) -> str | None:
    """Return an existing path as an absolute one, since workers run elsewhere; anything else is a known name."""
    return str(Path(value).absolute()) if value is not None and Path(value).exists() else value and str(value)


def builds(options: argparse.Namespace) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return what is measured: by name, a checkout and the settings of its worker."""
    settings = worker_settings(options)
    found = {THIS: (ROOT, settings)}
    if options.compare_with:
        loading = settings["loading"] | {"any_audio_tokenizer": True}  # its embedded one may be another
        earlier = settings | {"decoding": {}, "quantize": None, "loading": loading}
        found[options.compare_with.name] = (options.compare_with, earlier)
    if options.compare_dtype:
        found[options.compare_dtype] = (ROOT, settings | {"dtype": options.compare_dtype})
    if options.compare_quantize:
        found[options.compare_quantize] = (ROOT, settings | {"quantize": options.compare_quantize})
    return found


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure all builds, in turn if there are several; return for each what its worker returns."""
    found = builds(options)
    rounds, repeats = (options.repeats, 1) if len(found) > 1 else (1, options.repeats)
    results: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for name, (checkout, settings) in found.items():
            result = run_worker(WORKER, settings | {"repeats": repeats}, checkout)
            earlier = results.setdefault(name, result)
            if earlier is not result:
                for mode, measurements in result["measurements"].items():
                    earlier["measurements"][mode] += measurements
    return results


def summarise(measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the median of every metric, and the timeline of the answer with the median latency.

    `tokens_per_second` is the one of the first batch size, those of all are in `batches`.
    """
    ranked = sorted(measurements, key=lambda one: one["first_audio_ms"])
    plain = [name for name, value in ranked[0].items() if isinstance(value, float)]
    metrics = {name: median(one[name] for one in ranked) for name in plain}
    nested = {
        name: {key: median(one[name][key] for one in ranked) for key in ranked[0][name]}
        for name in ("tokens_per_second", "first_audio_parts_ms")
    }
    batches = nested["tokens_per_second"]
    metrics |= {"tokens_per_second": next(iter(batches.values())), "batches": batches}
    metrics["tokens_per_pass"] = 1 / metrics["backbone_passes_per_token"]
    metrics["first_audio_parts_ms"] = nested["first_audio_parts_ms"]
    return metrics | {"timeline": ranked[len(ranked) // 2]["timeline"]}


def as_report(results: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of benchmark.json.

    Speed-ups are relative to the first mode. `compared` has the other builds and, as `ratios`, the metrics of this
    checkout divided by theirs.
    """
    summaries = {}
    for name, result in results.items():
        modes = {mode: summarise(measurements) for mode, measurements in result["measurements"].items()}
        reference = modes[options.modes[0]]
        for metrics in modes.values():
            metrics["speedup"] = metrics["tokens_per_second"] / reference["tokens_per_second"]
            metrics["first_audio_speedup"] = reference["first_audio_ms"] / metrics["first_audio_ms"]
        facts = {key: value for key, value in result.items() if key != "measurements"}
        summaries[name] = facts | {"modes": modes}
    own = summaries.pop(THIS)
    for other in summaries.values():
        other["ratios"] = {mode: ratios(metrics, other["modes"][mode]) for mode, metrics in own["modes"].items()}
    settings = {"decoding": options.decoding, "new_tokens": options.new_tokens, "repeats": options.repeats}
    settings |= {"compared_with": options.modes[0]}
    return {"model": str(options.random_weights or options.model), **own, **settings, "compared": summaries}


def ratios(own: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of one build divided by those of another."""
    batches = {size: speed / other["batches"][size] for size, speed in own["batches"].items()}
    return {name: own[name] / other[name] for name in RATIOS} | {"batches": batches}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw speed, first audio, and speech ready over time, as a PNG file."""
    figure = new_figure(15, 4.5, layout="constrained")
    speed_axis, latency_axis, time_axis = figure.subplots(1, 3)
    for place, (mode, metrics) in enumerate(report["modes"].items()):
        for axis, name in ((speed_axis, "tokens_per_second"), (latency_axis, "first_audio_ms")):
            axis.bar_label(axis.bar(mode, metrics[name], color=f"C{place}"), fmt="%.0f")
        seconds, ready = zip((0.0, 0.0), *metrics["timeline"], strict=True)
        time_axis.step(seconds, ready, where="post", label=mode, color=f"C{place}")
    end = time_axis.get_xlim()[1]
    time_axis.plot([0, end], [0, end], "--", color="grey", label="real time")
    speed_axis.set(title="language model", ylabel="tokens per second")
    latency_axis.set(title="first audio", ylabel="ms after the call")
    time_axis.set(title="streamed answer", xlabel="seconds after the call", ylabel="seconds of speech ready")
    time_axis.legend()
    figure.suptitle(
        f"{report['num_parameters'] / 1e6:.0f} M parameters, {report['dtype']}, {report['device']}, "
        f"{report['new_tokens']} new tokens"
    )
    figure.savefig(path, dpi=110)


def tables(report: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of all modes, their batches, the parts of the first audio and the ratios to other builds."""
    modes = report["modes"]
    columns = {name: column for name, column in COLUMNS.items() if any(name in metrics for metrics in modes.values())}
    rows = [[format(metrics[name], spec) for name, (_, spec) in columns.items()] for metrics in modes.values()]
    yield _align(f"time: {report['clock']}", [heading for heading, _ in columns.values()], modes, rows)
    first = next(iter(modes.values()))
    if len(sizes := list(first["batches"])) > 1:
        rows = [
            [f"{speed:.1f} ({speed / metrics['tokens_per_second']:.2f}x)" for speed in metrics["batches"].values()]
            for metrics in modes.values()
        ]
        yield _align("tokens/s of all rows", [f"batch {size}" for size in sizes], modes, rows)
    if parts := first["first_audio_parts_ms"]:
        rows = [
            [f"{milliseconds:.1f}" for milliseconds in one["first_audio_parts_ms"].values()] for one in modes.values()
        ]
        yield _align("first audio, ms", list(parts), modes, rows)
    for name, other in report["compared"].items():
        found = other["ratios"].values()
        rows = [[*(row["batches"][size] for size in sizes), *(row[key] for key in RATIOS[1:])] for row in found]
        cells = [[f"{value:.2f}x" for value in row] for row in rows]
        headings = [*(f"tokens/s, batch {size}" for size in sizes), "first audio", "real-time factor"]
        yield _align(f"{THIS} over {name}", headings, modes, cells)


def _align(title: str, headings: Sequence[str], modes: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text with a row for each mode, under its title."""
    lines = [["mode", *headings], *([mode, *row] for mode, row in zip(modes, rows, strict=True))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join([f"{title}:", *("  ".join(map(str.rjust, line, widths)) for line in lines), ""])


def benchmark(options: argparse.Namespace) -> None:
    """Measure all builds and write the report."""
    check_attention(options.attn_implementation)
    check_files(options.random_weights)
    if options.random_weights is None:
        check_model_folder(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    report = as_report(measure(options), options)
    write_json(options.output / "benchmark.json", report)
    draw(report, options.output / "benchmark.png")
    print("\n".join(tables(report)))


def benchmark_server(options: argparse.Namespace) -> None:
    """Measure a running server and write the report."""
    check_files(*options.recordings, options.token_file)
    settings = {"server": options.server, "turns": options.turns, "token_file": _path(options.token_file)}
    settings["recordings"] = [_path(path) for path in options.recordings]
    report = run_worker(SERVER_WORKER, settings, ROOT)
    write_json(options.output / "benchmark.json", report)
    print(server_table(report))


def server_table(report: Mapping[str, Any]) -> str:
    """Return the medians and 90th percentiles as text."""
    lines = [f"{report['model']} at {report['server']}, {report['num_turns']} turns:", f"{'median':>31}{'90 %':>9}"]
    for name, heading in SERVER_COLUMNS.items():
        spec = "9.2f" if name == "real_time_factor" else "9.0f"
        found = report["metrics"][name]
        lines.append(f"{heading:<22}{found['median']:{spec}}{found['p90']:{spec}}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("benchmark_sts"):
        benchmark_server(options) if options.server else benchmark(options)


if __name__ == "__main__":
    main()
