"""Compare the speed and latency of a model's decoding modes.

    python tools/benchmark_sts.py --output outputs/benchmark
    python tools/benchmark_sts.py --model DIR --modes vanilla turbo --output DIR
    python tools/benchmark_sts.py --random-weights configs/models/qwen2_7b_mtp10.json --tokenizer DIR \\
        --audio-decoder-path random --device cuda --output DIR

Speed does not depend on the content, so all answers are forced to the same length and to the layout of training data,
and random weights serve as well as trained ones. The modes take turns; the median over the repeats is reported. On a
CPU, only the ratios to the first mode are meaningful. Writes benchmark.json and benchmark.png into the output folder.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

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
)
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json
from vita_audio.inference.tasks import Sample, text_conversation
from vita_audio.interleave import MODES, NUM_MARKERS, InterleavePlan
from vita_audio.plots import new_figure

if TYPE_CHECKING:
    from torch import Tensor

    from vita_audio.audio_tokenizers import AudioTokenizer
    from vita_audio.inference.pipeline import SpeechLM
    from vita_audio.text import TextTokenizer

RANDOM = "random"
MIB = 2**20
TEXT, CODE, BEGIN, END = range(4)  # kinds of tokens
COLUMNS = {  # metric of a mode -> heading, format
    "tokens_per_second": ("tokens/s", ".1f"),
    "speedup": ("speed-up", ".2f"),
    "backbone_passes_per_token": ("passes/token", ".3f"),
    "first_audio_ms": ("first audio ms", ".0f"),
    "real_time_factor": ("real-time factor", ".3f"),
    "peak_gpu_memory_mib": ("GPU MiB", ".0f"),
}


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
    add("--repeats", type=positive, default=3, help="answers per mode")
    add("--seed", type=int, default=0, help="seed for random weights")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    if (options.random_weights is None) != (options.tokenizer is None):
        parser.error("--random-weights and --tokenizer belong together")
    return options


def layout_forcing(
    plan: InterleavePlan, tokenizer: TextTokenizer, *, num_prompt: int, num_new: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that restricts each token to text, a marker or audio codes, as in training data.

    Plans for decoding only, such as "vanilla", use the layout of "boost".

    Args:
        num_prompt: Tokens of the prompt.
        num_new: Tokens of the answer.
    """
    import torch

    data_plan = plan if min(plan.ratio[1::2]) > NUM_MARKERS else InterleavePlan.parse("boost")
    size = num_new * max(data_plan.ratio)  # large enough that the answer ends before the last chunk
    kinds = data_plan.interleave([TEXT] * size, [CODE] * size, BEGIN, END)[:num_new]
    added = set(tokenizer.base.get_added_vocab().values())
    allowed = {
        TEXT: [i for i in range(tokenizer.first_audio_id) if i not in added],
        CODE: list(tokenizer.code_ids),
        BEGIN: [tokenizer.begin_of_audio_id],
        END: [tokenizer.end_of_audio_id],
    }
    penalties: dict[int, Tensor] = {}

    def restrict(input_ids: Tensor, scores: Tensor) -> Tensor:
        kind = kinds[input_ids.shape[1] - num_prompt]
        if kind not in penalties:
            penalties[kind] = torch.full_like(scores[0], -torch.inf)
            penalties[kind][allowed[kind]] = 0
        return scores + penalties[kind]

    return restrict


def measure(speech_lm: SpeechLM, conversation: Sample, plan: InterleavePlan, num_new: int) -> dict[str, Any]:
    """Answer twice: without audio for the speed of the language model, and streamed for the latency of the audio.

    Returns: The metrics in `COLUMNS`, and `timeline`: (seconds since the call, seconds of speech ready) for each piece
        of speech.
    """
    import torch

    device = speech_lm.model.device
    num_prompt = len(speech_lm.prompt_ids(conversation))
    forcing = layout_forcing(plan, speech_lm.tokenizer, num_prompt=num_prompt, num_new=num_new)
    options = {"plan": plan, "max_new_tokens": num_new, "do_sample": False, "logits_processor": [forcing]}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    timings = speech_lm.respond(conversation, decode_audio=False, **options).timings
    start, num_samples, timeline = perf_counter(), 0, []
    for chunk in speech_lm.stream(conversation, **options):
        if len(chunk.wave):
            num_samples += len(chunk.wave)
            timeline.append((perf_counter() - start, num_samples / speech_lm.audio_tokenizer.output_rate))
    metrics = {
        "tokens_per_second": timings.num_tokens / timings.generate_seconds,
        "backbone_passes_per_token": timings.num_backbone_passes / timings.num_tokens,
        "first_audio_ms": 1000 * timeline[0][0],
        "real_time_factor": timeline[-1][0] / timeline[-1][1],
        "timeline": timeline,
    }
    if device.type == "cuda":
        metrics["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
    return metrics


def measure_modes(
    speech_lm: SpeechLM, modes: Sequence[str], *, num_prompt: int, num_new: int, repeats: int
) -> dict[str, Any]:
    """Measure the modes in turn, after one warm-up answer each; speed-ups are relative to the first mode.

    Args:
        modes: Names or ratios of interleave plans.
        num_prompt: Minimum number of tokens in the prompt.
        num_new: Tokens of each answer.
        repeats: Answers per mode; medians are reported.
    Returns: Content of benchmark.json.
    """
    import torch

    conversation = make_prompt(speech_lm, num_prompt)
    plans = {mode: InterleavePlan.parse(mode) for mode in modes}
    measurements: dict[str, list[dict[str, Any]]] = {mode: [] for mode in plans}
    for mode, plan in tqdm(list(plans.items()) * (repeats + 1), desc="measuring", unit="answer"):
        measurements[mode].append(measure(speech_lm, conversation, plan, num_new))
    report = {mode: summarise(measurements[mode][1:]) for mode in modes}
    reference = report[modes[0]]
    for metrics in report.values():
        metrics["speedup"] = metrics["tokens_per_second"] / reference["tokens_per_second"]
        metrics["first_audio_speedup"] = reference["first_audio_ms"] / metrics["first_audio_ms"]
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
        "modes": report,
    }


def summarise(measurements: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the median of every metric, and the timeline of the answer with the median latency."""
    ranked = sorted(measurements, key=lambda one: one["first_audio_ms"])
    metrics = {name: median(one[name] for one in ranked) for name in ranked[0] if name != "timeline"}
    return metrics | {"timeline": ranked[len(ranked) // 2]["timeline"]}


def make_prompt(speech_lm: SpeechLM, num_tokens: int) -> Sample:
    """Return a written question of at least `num_tokens` tokens, including the headers of the turns."""
    words = 1
    while len(speech_lm.prompt_ids(conversation := text_conversation(" ".join(["what"] * words)))) < num_tokens:
        words += 1
    return conversation


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


def table(modes: dict[str, dict[str, Any]]) -> str:
    """Return the metrics of all modes as an aligned text table."""
    columns = {name: column for name, column in COLUMNS.items() if any(name in metrics for metrics in modes.values())}
    rows = [["mode", *(heading for heading, _ in columns.values())]]
    for mode, metrics in modes.items():
        rows.append([mode, *(format(metrics[name], spec) for name, (_, spec) in columns.items())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.rjust, row, widths)) for row in rows)


def random_speech_lm(
    config_path: Path, tokenizer: Path, audio_tokenizer: AudioTokenizer, *, device: str, dtype: str | None
) -> SpeechLM:
    """Make a model with random weights; its vocabulary grows if the tokenizers need more than its config says."""
    import torch
    from transformers import AutoConfig

    from vita_audio.inference.pipeline import SpeechLM, default_dtype
    from vita_audio.models import Qwen2MTPForCausalLM
    from vita_audio.text import TextTokenizer

    text_tokenizer = TextTokenizer.from_pretrained(tokenizer, audio_tokenizer.vocab_size)
    config = AutoConfig.from_pretrained(config_path)
    config.vocab_size = max(config.vocab_size, text_tokenizer.padded_size)
    with torch.device(device):
        model = Qwen2MTPForCausalLM._from_config(config, dtype=dtype or default_dtype(device))
    return SpeechLM(model, text_tokenizer, audio_tokenizer)


def random_audio_tokenizer(device: str, stream_chunks: Sequence[int] | None) -> AudioTokenizer:
    """Make a GLM-4-Voice decoder of the released size with random weights; it cannot encode."""
    import torch
    from transformers import WhisperFeatureExtractor

    from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer
    from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
    from vita_audio.speech_decoder.config import DecoderConfig
    from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
    from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
    from vita_audio.speech_decoder.hift import HiFTGenerator

    config = DecoderConfig()
    with torch.device("meta"):
        encoder = WhisperVQEncoder(WhisperVQConfig(encoder_layers=16, quantize_vocab_size=config.flow.vocab_size))
    features = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    decoder = SpeechDecoder(config, MaskedDiffWithXvec(config.flow).to(device), HiFTGenerator(config.hift).to(device))
    more = {"stream_chunks": stream_chunks} if stream_chunks else {}
    return GLM4VoiceTokenizer(encoder, features, decoder, **more)


def benchmark(options: argparse.Namespace) -> None:
    """Load the model, measure its modes and write the report."""
    check_files(options.random_weights)
    if options.random_weights is None:
        check_model_folder(options.model)
    options.output.mkdir(parents=True, exist_ok=True)
    import torch

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
        config, tokenizer, dtype = options.random_weights, options.tokenizer, options.dtype
        speech_lm = random_speech_lm(config, tokenizer, audio_tokenizer, device=device, dtype=dtype)
    report = measure_modes(
        speech_lm, options.modes, num_prompt=options.prompt_tokens, num_new=options.new_tokens, repeats=options.repeats
    )
    report = {"model": str(options.random_weights or options.model)} | report
    write_json(options.output / "benchmark.json", report)
    draw(report, options.output / "benchmark.png")
    print(table(report["modes"]))


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("benchmark_sts"):
        benchmark(options)


if __name__ == "__main__":
    main()
