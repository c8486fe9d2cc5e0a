"""Measure how fast a model speaks, its decoding modes side by side in one run.

    python tools/benchmark_sts.py --output outputs/benchmark
    python tools/benchmark_sts.py --model DIR --modes vanilla turbo --output DIR
    python tools/benchmark_sts.py --random-weights configs/models/qwen2_7b_mtp10.json --tokenizer DIR \\
        --audio-decoder-path random --device cuda --output DIR

Speed does not depend on what is said, so the answer's layout is forced: every mode makes the same number of tokens,
text and audio where a trained model puts them, and random weights do as well as trained ones. The modes take turns and
the median over the repeats counts. On a CPU only the ratios to the first mode mean something.

Writes benchmark.json and benchmark.png into the output folder.
"""

from __future__ import annotations

import argparse
import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, LogitsProcessor, WhisperFeatureExtractor

from vita_audio.audio_tokenizers import AudioTokenizer
from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
from vita_audio.command_line import (
    DTYPES,
    OneLineParser,
    add_model_options,
    check_model_folder,
    load_audio_tokenizer,
    load_speech_lm,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.inference.pipeline import SpeechLM, resolve_device
from vita_audio.inference.tasks import Sample, text_conversation
from vita_audio.interleave import MODES, NUM_MARKERS, InterleavePlan
from vita_audio.models import Qwen2MTPForCausalLM
from vita_audio.speech_decoder.config import DecoderConfig
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.text import TextTokenizer

RANDOM = "random"
MIB = 2**20
COLUMNS = {  # of a mode's figures -> heading, format
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "speedup": ("speed-up", "{:.2f}"),
    "backbone_passes_per_token": ("passes/token", "{:.3f}"),
    "first_audio_ms": ("first audio ms", "{:.0f}"),
    "real_time_factor": ("real-time factor", "{:.3f}"),
    "peak_gpu_memory_mib": ("GPU MiB", "{:.0f}"),
}


@dataclass
class Measurement:
    """One answer. `timeline`: (seconds since the call, seconds of speech ready), one pair per piece of speech."""

    tokens_per_second: float
    backbone_passes_per_token: float
    first_audio_ms: float
    real_time_factor: float
    timeline: list[tuple[float, float]]
    peak_gpu_memory_mib: float | None


class LayoutForcing(LogitsProcessor):
    """Lets every token be only text, only a marker or only an audio code, as the layout of an answer wants it."""

    def __init__(self, plan: InterleavePlan, tokenizer: TextTokenizer, *, num_prompt: int, num_new: int):
        self._num_prompt = num_prompt
        self._kinds = layout(plan, num_new)
        added = set(tokenizer.base.get_added_vocab().values())
        first_code = tokenizer.first_audio_id
        self._allowed = {
            "text": torch.tensor([i for i in range(first_code) if i not in added]),
            "begin": torch.tensor([tokenizer.begin_of_audio_id]),
            "code": torch.arange(first_code, first_code + tokenizer.num_audio_codes),
            "end": torch.tensor([tokenizer.end_of_audio_id]),
        }
        self._penalties: dict[str, Tensor] = {}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kind = self._kinds[input_ids.shape[1] - self._num_prompt]
        if kind not in self._penalties:
            penalty = torch.full_like(scores[0], -torch.inf)
            penalty[self._allowed[kind].to(scores.device)] = 0
            self._penalties[kind] = penalty
        return scores + self._penalties[kind]


def layout(plan: InterleavePlan, num_tokens: int) -> list[str]:
    """Return the kind of each token of an answer; a plan that is for decoding only speaks as "boost" is laid out."""
    ratio = plan.ratio if min(plan.ratio[1::2]) > NUM_MARKERS else MODES["boost"]
    kinds: list[str] = []
    for num_text, num_audio in chain(zip(ratio[::2], ratio[1::2], strict=True), repeat(ratio[-2:])):
        if len(kinds) >= num_tokens:
            return kinds[:num_tokens]
        kinds += ["text"] * num_text + ["begin"] + ["code"] * (num_audio - NUM_MARKERS) + ["end"]


def measure(speech_lm: SpeechLM, conversation: Sample, plan: InterleavePlan, num_new: int) -> Measurement:
    """Answer twice: whole, for the speed of the language model alone, and streamed, for what a listener notices."""
    num_prompt = len(speech_lm.prompt_ids(conversation))
    forcing = LayoutForcing(plan, speech_lm.tokenizer, num_prompt=num_prompt, num_new=num_new)
    options = {"plan": plan, "max_new_tokens": num_new, "do_sample": False, "logits_processor": [forcing]}
    on_gpu = speech_lm.model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(speech_lm.model.device)
    timings = speech_lm.respond(conversation, decode_audio=False, **options).timings
    start, num_samples, timeline = perf_counter(), 0, []
    for chunk in speech_lm.stream(conversation, **options):
        if len(chunk.wave):
            num_samples += len(chunk.wave)
            timeline.append((perf_counter() - start, num_samples / speech_lm.audio_tokenizer.output_rate))
    return Measurement(
        tokens_per_second=timings.num_tokens / timings.generate_seconds,
        backbone_passes_per_token=timings.num_backbone_passes / timings.num_tokens,
        first_audio_ms=1000 * timeline[0][0],
        real_time_factor=timeline[-1][0] / timeline[-1][1],
        timeline=timeline,
        peak_gpu_memory_mib=torch.cuda.max_memory_allocated(speech_lm.model.device) / MIB if on_gpu else None,
    )


def measure_modes(
    speech_lm: SpeechLM, modes: Sequence[str], *, num_prompt: int, num_new: int, repeats: int
) -> dict[str, Any]:
    """Measure all modes in turn, after one answer of each that does not count; the first mode is the yardstick."""
    conversation = make_prompt(speech_lm, num_prompt)
    plans = {mode: InterleavePlan.parse(mode) for mode in modes}
    measurements: dict[str, list[Measurement]] = {mode: [] for mode in plans}
    turns = list(plans.items()) * (repeats + 1)
    for mode, plan in tqdm(turns, desc="measuring", unit="answer"):
        measurements[mode].append(measure(speech_lm, conversation, plan, num_new))
    figures = {mode: summarise(measurements[mode][1:]) for mode in modes}
    yardstick = figures[modes[0]]
    for mode in modes:
        figures[mode]["speedup"] = figures[mode]["tokens_per_second"] / yardstick["tokens_per_second"]
        figures[mode]["first_audio_speedup"] = yardstick["first_audio_ms"] / figures[mode]["first_audio_ms"]
    device = speech_lm.model.device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "dtype": str(speech_lm.model.dtype).removeprefix("torch."),
        "num_parameters": speech_lm.model.num_parameters(),
        "num_mtp_modules": speech_lm.model.config.num_nextn_predict_layers,
        "prompt_tokens": len(speech_lm.prompt_ids(conversation)),
        "new_tokens": num_new,
        "repeats": repeats,
        "peak_process_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "compared_with": modes[0],
        "modes": figures,
    }


def summarise(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the median of every figure, and the timeline of the answer whose first audio was the median one."""
    figures = {}
    for name in COLUMNS:
        values = [value for one in measurements if (value := getattr(one, name, None)) is not None]
        if values:
            figures[name] = median(values)
    ranked = sorted(measurements, key=lambda one: one.first_audio_ms)
    return figures | {"timeline": ranked[len(ranked) // 2].timeline}


def make_prompt(speech_lm: SpeechLM, num_tokens: int) -> Sample:
    """Return a written question of at least `num_tokens` tokens, the turns' headers included."""
    words = 1
    while len(speech_lm.prompt_ids(conversation := text_conversation(" ".join(["what"] * words)))) < num_tokens:
        words += 1
    return conversation


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw speed, first audio, and speech ready over time, as a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    speed_axis, latency_axis, time_axis = figure.subplots(1, 3)
    for place, (mode, figures) in enumerate(report["modes"].items()):
        for axis, name in ((speed_axis, "tokens_per_second"), (latency_axis, "first_audio_ms")):
            axis.bar_label(axis.bar(mode, figures[name], color=f"C{place}"), fmt="%.0f")
        seconds, ready = zip((0.0, 0.0), *figures["timeline"], strict=True)
        time_axis.step(seconds, ready, where="post", label=mode, color=f"C{place}")
    end = time_axis.get_xlim()[1]
    time_axis.plot([0, end], [0, end], "--", color="grey", label="real time")
    speed_axis.set(title="language model", ylabel="tokens per second")
    latency_axis.set(title="first audio", ylabel="ms after the call")
    time_axis.set(title="streamed answer", xlabel="seconds after the call", ylabel="seconds of speech ready")
    time_axis.legend()
    size = report["num_parameters"] / 1e6
    figure.suptitle(
        f"{size:.0f} M parameters, {report['dtype']}, {report['device']}, {report['new_tokens']} new tokens"
    )
    figure.savefig(path, dpi=110)


def table(report: dict[str, Any]) -> str:
    columns = [name for name in COLUMNS if any(name in figures for figures in report["modes"].values())]
    rows = [["mode", *(COLUMNS[name][0] for name in columns)]]
    rows += [
        [mode, *(COLUMNS[name][1].format(figures[name]) for name in columns)]
        for mode, figures in report["modes"].items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def random_speech_lm(options: argparse.Namespace, audio_tokenizer: AudioTokenizer) -> SpeechLM:
    """Make a model of random weights; its vocabulary grows if the tokenizers need more than its config says."""
    device = resolve_device(options.device)
    tokenizer = TextTokenizer.from_pretrained(options.tokenizer, audio_tokenizer.vocab_size)
    config = AutoConfig.from_pretrained(options.random_weights)
    config.vocab_size = max(config.vocab_size, tokenizer.padded_size)
    dtype = DTYPES.get(options.dtype) or (torch.float32 if device == "cpu" else torch.bfloat16)
    with torch.device(device):
        model = Qwen2MTPForCausalLM._from_config(config, dtype=dtype)
    return SpeechLM(model, tokenizer, audio_tokenizer)


def random_audio_tokenizer(options: argparse.Namespace) -> AudioTokenizer:
    """Make a GLM-4-Voice decoder of the released size with random weights; nothing is encoded with it."""
    device = resolve_device(options.device)
    config = DecoderConfig()
    with torch.device("meta"):
        encoder = WhisperVQEncoder(WhisperVQConfig(encoder_layers=16, quantize_vocab_size=config.flow.vocab_size))
    features = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    decoder = SpeechDecoder(config, MaskedDiffWithXvec(config.flow).to(device), HiFTGenerator(config.hift).to(device))
    more = {"stream_chunks": options.stream_chunks} if options.stream_chunks else {}
    return GLM4VoiceTokenizer(encoder, features, decoder, **more)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(
        prog="benchmark_sts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for benchmark.json and benchmark.png")
    parser.add_argument("--modes", nargs="+", default=list(MODES), help="names or ratios; the first is the yardstick")
    parser.add_argument("--random-weights", type=Path, metavar="CONFIG", help="model config, instead of --model")
    parser.add_argument("--tokenizer", type=Path, help="text tokenizer for --random-weights; any Qwen2 one will do")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--new-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of random weights (default: %(default)s)")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    if (options.random_weights is None) != (options.tokenizer is None):
        parser.error("--random-weights and --tokenizer belong together")
    if min(options.prompt_tokens, options.repeats) < 1:
        parser.error("--prompt-tokens and --repeats must be at least 1")
    if options.new_tokens < 100:
        parser.error("--new-tokens must be at least 100, a few seconds of speech")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("benchmark_sts"):
        benchmark(options)


def benchmark(options: argparse.Namespace) -> None:
    for mode in options.modes:
        InterleavePlan.parse(mode)
    options.output.mkdir(parents=True, exist_ok=True)
    quieten_transformers()
    torch.manual_seed(options.seed)
    load = load_audio_tokenizer
    if options.audio_decoder_path == RANDOM:
        load, options.any_audio_tokenizer = random_audio_tokenizer, True
    if options.random_weights is None:
        check_model_folder(options.model)
        speech_lm = load_speech_lm(options, load(options))
    else:
        speech_lm = random_speech_lm(options, load(options))
    report = measure_modes(
        speech_lm,
        options.modes,
        num_prompt=options.prompt_tokens,
        num_new=options.new_tokens,
        repeats=options.repeats,
    )
    report = {"model": str(options.random_weights or options.model)} | report
    (options.output / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    draw(report, options.output / "benchmark.png")
    print(table(report))


if __name__ == "__main__":
    main()
