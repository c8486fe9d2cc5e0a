"""How fast a model speaks: its decoding modes measured side by side, with trained or random weights.

Speed does not depend on what is said, so the layout of the answers is forced: every mode makes the same number of
tokens, text and audio where a trained model puts them, and random weights do as well as trained ones.
"""

from __future__ import annotations

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
from vita_audio.inference.pipeline import SpeechLM, default_dtype
from vita_audio.inference.tasks import Sample, text_conversation
from vita_audio.interleave import MODES, NUM_MARKERS, InterleavePlan
from vita_audio.models import Qwen2MTPForCausalLM
from vita_audio.speech_decoder.config import DecoderConfig
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.glm4voice.flow import MaskedDiffWithXvec
from vita_audio.speech_decoder.hift import HiFTGenerator
from vita_audio.text import TextTokenizer

MIB = 2**20
COLUMNS = {  # metric of a mode -> heading, format
    "tokens_per_second": ("tokens/s", "{:.1f}"),
    "speedup": ("speed-up", "{:.2f}"),
    "backbone_passes_per_token": ("passes/token", "{:.3f}"),
    "first_audio_ms": ("first audio ms", "{:.0f}"),
    "real_time_factor": ("real-time factor", "{:.3f}"),
    "peak_gpu_memory_mib": ("GPU MiB", "{:.0f}"),
}


@dataclass
class Measurement:
    """Speed of one answer.

    Attributes:
        timeline: (seconds since the call, seconds of speech ready), one pair per piece of speech.
    """

    tokens_per_second: float
    backbone_passes_per_token: float
    first_audio_ms: float
    real_time_factor: float
    timeline: list[tuple[float, float]]
    peak_gpu_memory_mib: float | None


class LayoutForcing(LogitsProcessor):
    """Restricts each token to text, to a marker or to audio codes, as `layout` says.

    Args:
        num_prompt: Tokens of the prompt.
        num_new: Tokens of the answer.
    """

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
    """Return the kind of each token of an answer; plans for decoding only ("vanilla") use the layout of "boost"."""
    ratio = plan.ratio if min(plan.ratio[1::2]) > NUM_MARKERS else MODES["boost"]
    kinds: list[str] = []
    for num_text, num_audio in chain(zip(ratio[::2], ratio[1::2], strict=True), repeat(ratio[-2:])):
        if len(kinds) >= num_tokens:
            return kinds[:num_tokens]
        kinds += ["text"] * num_text + ["begin"] + ["code"] * (num_audio - NUM_MARKERS) + ["end"]


def measure(speech_lm: SpeechLM, conversation: Sample, plan: InterleavePlan, num_new: int) -> Measurement:
    """Answer twice: without audio for the speed of the language model, and streamed for the latency of the audio."""
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
    """Measure the modes in turn, after one warm-up answer each; speed-ups are relative to the first mode.

    Args:
        modes: Names or ratios of interleave plans.
        num_prompt: Least number of tokens in the prompt.
        num_new: Tokens of each answer.
        repeats: Answers per mode; medians are reported.
    Returns: Content of benchmark.json.
    """
    conversation = make_prompt(speech_lm, num_prompt)
    plans = {mode: InterleavePlan.parse(mode) for mode in modes}
    measurements: dict[str, list[Measurement]] = {mode: [] for mode in plans}
    turns = list(plans.items()) * (repeats + 1)
    for mode, plan in tqdm(turns, desc="measuring", unit="answer"):
        measurements[mode].append(measure(speech_lm, conversation, plan, num_new))
    metrics = {mode: summarise(measurements[mode][1:]) for mode in modes}
    reference = metrics[modes[0]]
    for mode in modes:
        metrics[mode]["speedup"] = metrics[mode]["tokens_per_second"] / reference["tokens_per_second"]
        metrics[mode]["first_audio_speedup"] = reference["first_audio_ms"] / metrics[mode]["first_audio_ms"]
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
        "modes": metrics,
    }


def summarise(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Return the median of every metric, and the timeline of the answer with the median latency."""
    metrics = {}
    for name in COLUMNS:
        values = [value for one in measurements if (value := getattr(one, name, None)) is not None]
        if values:
            metrics[name] = median(values)
    ranked = sorted(measurements, key=lambda one: one.first_audio_ms)
    return metrics | {"timeline": ranked[len(ranked) // 2].timeline}


def make_prompt(speech_lm: SpeechLM, num_tokens: int) -> Sample:
    """Return a written question of at least `num_tokens` tokens, including the headers of the turns."""
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
    size = report["num_parameters"] / 1e6
    figure.suptitle(
        f"{size:.0f} M parameters, {report['dtype']}, {report['device']}, {report['new_tokens']} new tokens"
    )
    figure.savefig(path, dpi=110)


def table(report: dict[str, Any]) -> str:
    """Return the metrics of all modes as an aligned text table."""
    columns = [name for name in COLUMNS if any(name in metrics for metrics in report["modes"].values())]
    rows = [["mode", *(COLUMNS[name][0] for name in columns)]]
    rows += [
        [mode, *(COLUMNS[name][1].format(metrics[name]) for name in columns)]
        for mode, metrics in report["modes"].items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def random_speech_lm(
    config_path: Path, tokenizer: Path, audio_tokenizer: AudioTokenizer, *, device: str, dtype: torch.dtype | None
) -> SpeechLM:
    """Make a model with random weights; its vocabulary grows if the tokenizers need more than its config says."""
    text_tokenizer = TextTokenizer.from_pretrained(tokenizer, audio_tokenizer.vocab_size)
    config = AutoConfig.from_pretrained(config_path)
    config.vocab_size = max(config.vocab_size, text_tokenizer.padded_size)
    with torch.device(device):
        model = Qwen2MTPForCausalLM._from_config(config, dtype=dtype or default_dtype(device))
    return SpeechLM(model, text_tokenizer, audio_tokenizer)


def random_audio_tokenizer(device: str, stream_chunks: Sequence[int] | None) -> AudioTokenizer:
    """Make a GLM-4-Voice decoder of the released size with random weights; it cannot encode."""
    config = DecoderConfig()
    with torch.device("meta"):
        encoder = WhisperVQEncoder(WhisperVQConfig(encoder_layers=16, quantize_vocab_size=config.flow.vocab_size))
    features = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    decoder = SpeechDecoder(config, MaskedDiffWithXvec(config.flow).to(device), HiFTGenerator(config.hift).to(device))
    more = {"stream_chunks": stream_chunks} if stream_chunks else {}
    return GLM4VoiceTokenizer(encoder, features, decoder, **more)
