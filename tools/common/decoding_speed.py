"""Measure how fast one checkout decodes: the part of tools/benchmark_sts.py that runs in a process of its own.

`main` prints one line of JSON. The file uses only names that earlier checkouts have too.
"""

from __future__ import annotations

import inspect
import json
import resource
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, WhisperFeatureExtractor
from transformers.utils import logging as transformers_logging

from vita_audio.audio_tokenizers import AudioTokenizer, get_audio_tokenizer
from vita_audio.errors import one_line_errors
from vita_audio.inference.pipeline import SpeechLM, default_dtype, resolve_device
from vita_audio.inference.tasks import text_conversation
from vita_audio.interleave import NUM_MARKERS, InterleavePlan
from vita_audio.models import Qwen2MTPForCausalLM
from vita_audio.text import TextTokenizer

RANDOM = "random"  # as a decoder path: random weights
NO_END = [-1]  # end of an answer that no token is, so that all answers have the same length
MIB = 2**20
TEXT, CODE, BEGIN, END = range(4)  # kinds of tokens


@dataclass
class Settings:
    """What is measured.

    Attributes:
        model: Folder or hub name; None: random weights with `config` and `tokenizer`.
        audio: Arguments of `get_audio_tokenizer` and, by keyword, of the audio tokenizer.
        loading: Keyword arguments of `SpeechLM.from_pretrained`; random weights need only `attn_implementation`.
        quantize: Kind of quantised weights, see `quantize_weights`; None: they stay as loaded.
        modes: Names or ratios of interleave plans.
        batch_sizes: Answers generated together.
        decoding: Arguments of `generate`, such as `acceptance`.
        prompt_tokens: Minimum number of tokens in the prompt.
        new_tokens: Tokens of each answer.
        repeats: Measurements of each mode, after one that does not count.
        seed: Seed for random weights.
    """

    modes: Sequence[str]
    model: str | None = None
    config: str | None = None
    tokenizer: str | None = None
    audio: dict[str, Any] = field(default_factory=dict)
    loading: dict[str, Any] = field(default_factory=dict)
    quantize: str | None = None
    device: str = "auto"
    dtype: str | None = None
    batch_sizes: Sequence[int] = (1,)
    decoding: dict[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 32
    new_tokens: int = 256
    repeats: int = 3
    seed: int = 0


def layout_forcing(
    plan: InterleavePlan, tokenizer: TextTokenizer, *, num_prompt: int, num_new: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a logits processor that restricts each token to text, a marker or audio codes, as in training data.

    Plans for decoding only, such as "vanilla", use the layout of "boost".

    Args:
        num_prompt: Tokens of the prompt.
        num_new: Tokens of the answer.
    """
    data_plan = plan if min(plan.ratio[1::2]) > NUM_MARKERS else InterleavePlan.parse("boost")
    size = num_new * max(data_plan.ratio)  # large enough that the answer ends before the last chunk
    kinds = data_plan.interleave([TEXT] * size, [CODE] * size, BEGIN, END)[:num_new]
    added, first_code = set(tokenizer.base.get_added_vocab().values()), tokenizer.first_audio_id
    allowed = {
        TEXT: [i for i in range(first_code) if i not in added],
        CODE: list(range(first_code, first_code + tokenizer.num_audio_codes)),
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


class Clock:
    """Seconds of one thread's CPU time on a CPU, which other programs hardly change; elapsed seconds on a GPU."""

    def __init__(self, device: torch.device):
        self._device = device
        self.name = "elapsed" if device.type == "cuda" else "CPU time of one thread"

    def __call__(self) -> float:
        if self._device.type != "cuda":
            return process_time()
        torch.cuda.synchronize(self._device)
        return perf_counter()


def measure(speech_lm: SpeechLM, conversation: dict[str, Any], mode: str, settings: Settings) -> dict[str, Any]:
    """Measure the language model alone for each batch size, and a streamed answer.

    Returns: `tokens_per_second` by batch size, of all rows together; `backbone_passes_per_token`; `first_audio_ms`, and
        the milliseconds of its parts where the checkout measures them; `real_time_factor`; `timeline`, (seconds since
        the call, seconds of speech ready) for each piece of speech; and on a GPU `peak_gpu_memory_mib`.
    """
    device, plan = speech_lm.model.device, InterleavePlan.parse(mode)
    clock, num_new = Clock(device), settings.new_tokens
    options = {"plan": plan, "max_new_tokens": num_new, "do_sample": False, "eos_token_id": NO_END, **settings.decoding}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    layout = {"num_prompt": len(speech_lm.prompt_ids(conversation)), "num_new": num_new}
    forced = {**options, "logits_processor": [layout_forcing(plan, speech_lm.tokenizer, **layout)]}
    if settings.decoding.get("acceptance"):  # how many drafts are accepted depends on what the answer says
        options = forced
    speeds = {}
    for size in settings.batch_sizes:
        start = clock()
        answers = speech_lm.respond_batch([conversation] * size, decode_audio=False, **options)
        speeds[str(size)] = size * num_new / (clock() - start)
    metrics = {
        "tokens_per_second": speeds,
        "backbone_passes_per_token": answers[0].timings.num_backbone_passes / num_new,
        **stream(speech_lm, conversation, forced, clock),
    }
    if device.type == "cuda":
        metrics["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
    return metrics


def stream(speech_lm: SpeechLM, conversation: dict[str, Any], options: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Stream an answer that has audio; return the metrics of it, see `measure`."""
    parts: dict[str, float] = {}
    if "stopwatch" in inspect.signature(SpeechLM.stream).parameters:
        from vita_audio.stopwatch import Stopwatch

        stopwatch = Stopwatch(clock)
        options, parts = {**options, "stopwatch": stopwatch}, stopwatch.seconds
    start, num_samples, timeline, first_parts = clock(), 0, [], {}
    for chunk in speech_lm.stream(conversation, **options):
        if len(chunk.wave):
            num_samples += len(chunk.wave)
            first_parts = first_parts or {name: 1000 * seconds for name, seconds in parts.items()}
            timeline.append((clock() - start, num_samples / speech_lm.audio_tokenizer.output_rate))
    return {
        "first_audio_ms": 1000 * timeline[0][0],
        "first_audio_parts_ms": first_parts,
        "real_time_factor": timeline[-1][0] / timeline[-1][1],
        "timeline": timeline,
    }


def make_prompt(speech_lm: SpeechLM, num_tokens: int) -> dict[str, Any]:
    """Return a written question of at least `num_tokens` tokens, including the headers of the turns."""
    words = 1
    while len(speech_lm.prompt_ids(conversation := text_conversation(" ".join(["what"] * words)))) < num_tokens:
        words += 1
    return conversation


def load(settings: Settings) -> SpeechLM:
    """Load the model, or make it with random weights. Raises: the errors of loading."""
    device = resolve_device(settings.device)
    dtype = getattr(torch, settings.dtype) if settings.dtype else default_dtype(device)
    audio = dict(settings.audio)
    if audio["decoder_path"] == RANDOM:
        audio_tokenizer = random_audio_tokenizer(device, audio.get("stream_chunks"))
    else:
        audio_tokenizer = get_audio_tokenizer(device=device, **audio)
    if settings.model is not None:
        return SpeechLM.from_pretrained(settings.model, audio_tokenizer, device, dtype, **settings.loading)
    return random_speech_lm(settings, audio_tokenizer, device, dtype)


def random_speech_lm(settings: Settings, audio_tokenizer: AudioTokenizer, device: str, dtype: torch.dtype) -> SpeechLM:
    """Make a model with random weights; its vocabulary grows if the tokenizers need more than its config says."""
    text_tokenizer = TextTokenizer.from_pretrained(settings.tokenizer, audio_tokenizer.vocab_size)
    config = AutoConfig.from_pretrained(settings.config)
    config.vocab_size = max(config.vocab_size, text_tokenizer.padded_size)
    attention = settings.loading.get("attn_implementation", "sdpa")
    with torch.device(device):
        model = Qwen2MTPForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    return SpeechLM(model, text_tokenizer, audio_tokenizer)


def random_audio_tokenizer(device: str, stream_chunks: Sequence[int] | None) -> AudioTokenizer:
    """Make a GLM-4-Voice decoder of the released size with random weights; it cannot encode."""
    from vita_audio.audio_tokenizers.glm4voice import GLM4VoiceTokenizer, SpeechDecoder
    from vita_audio.audio_tokenizers.whisper_vq import WhisperVQConfig, WhisperVQEncoder
    from vita_audio.speech_decoder.config import DecoderConfig
    from vita_audio.speech_decoder.hift import HiFTGenerator

    flow_class = import_module(SpeechDecoder.__module__).MaskedDiffWithXvec  # its place depends on the checkout
    config = DecoderConfig()
    with torch.device("meta"):
        encoder = WhisperVQEncoder(WhisperVQConfig(encoder_layers=16, quantize_vocab_size=config.flow.vocab_size))
    features = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    decoder = SpeechDecoder(config, flow_class(config.flow).to(device), HiFTGenerator(config.hift).to(device))
    more = {"stream_chunks": stream_chunks} if stream_chunks else {}
    return GLM4VoiceTokenizer(encoder, features, decoder, **more)


def turns(settings: Settings) -> Iterator[str]:
    """Yield the modes in turn, each one time more than it counts, with a progress bar."""
    yield from tqdm(list(settings.modes) * (settings.repeats + 1), desc="measuring", unit="answer")


def measure_all(settings: Settings) -> dict[str, Any]:
    """Measure all modes; return facts about the model and, by mode, a list of `measure`."""
    torch.manual_seed(settings.seed)
    speech_lm = load(settings)
    num_parameters = speech_lm.model.num_parameters()  # does not count quantised ones
    if settings.quantize:
        from vita_audio.models.quantization import quantize_weights

        quantize_weights(speech_lm.model, settings.quantize)
    conversation, device = make_prompt(speech_lm, settings.prompt_tokens), speech_lm.model.device
    if device.type == "cpu":
        torch.set_num_threads(1)
    measurements: dict[str, list[dict[str, Any]]] = {mode: [] for mode in settings.modes}
    for mode in turns(settings):
        measurements[mode].append(measure(speech_lm, conversation, mode, settings))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "clock": Clock(device).name,
        "dtype": str(speech_lm.model.dtype).removeprefix("torch."),
        "quantize": settings.quantize,
        "num_parameters": num_parameters,
        "num_mtp_modules": speech_lm.model.config.num_nextn_predict_layers,
        "prompt_tokens": len(speech_lm.prompt_ids(conversation)),
        "peak_process_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "measurements": {mode: found[1:] for mode, found in measurements.items()},
    }


def main(settings: str) -> None:
    """Measure with settings given as JSON and print the result as JSON, the last line of the output."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with one_line_errors("benchmark_sts"):
        print(json.dumps(measure_all(Settings(**json.loads(settings)))))
