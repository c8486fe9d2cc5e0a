"""Measure how a model recognises held-out speech that other microphones and rooms change.

    python -m tools.demo.hearing --model outputs/demo_model/stage4 --corpus outputs/demo_model/corpus \\
        --output outputs/hearing

Prints the word error rate of each condition, its 95 % interval and its difference from the recordings as they are, and
writes hearing.json and hearing.png.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation.suites import BENCHMARKS, Item, draw
from tools.demo.microphones import with_noise, with_room, with_silence
from vita_audio.command_line import (
    OneLineParser,
    add_model_options,
    in_range,
    load_audio_tokenizer,
    load_speech_lm,
    quieten_transformers,
)
from vita_audio.constants import INPUT_RATE
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import write_json

if TYPE_CHECKING:
    from evaluation.metrics.score import Score
    from evaluation.tasks import Value
    from vita_audio.inference.pipeline import SpeechLM

NOISE_DB = -40.0  # RMS relative to full scale
REVERBERATION, DIRECT_DB = 0.3, 10.0  # seconds, dB: a furnished room, with the microphone near the mouth
RECORDED = "as recorded"
BENCHMARK = BENCHMARKS["demo-asr"]

Condition = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _gain(gain: float, wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return wave * gain


def _silence(seconds: float, wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return with_silence(wave, INPUT_RATE, seconds, seconds)


def _noise(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return with_noise(wave, NOISE_DB, generator)


def _room(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return with_room(wave, INPUT_RATE, REVERBERATION, DIRECT_DB, generator)


def _all(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 0.2 * _noise(_silence(1.0, _room(wave, generator), generator), generator)


CONDITIONS: dict[str, Condition] = {
    RECORDED: partial(_gain, 1.0),
    **{f"gain {gain:g}": partial(_gain, gain) for gain in (0.5, 0.2, 0.05)},
    **{f"{seconds:g} s of silence around": partial(_silence, seconds) for seconds in (1.0, 2.0)},
    f"noise at {NOISE_DB:.0f} dB": _noise,
    "light reverberation": _room,
    "room, silence, noise, gain 0.2": _all,
}


def recognise(speech_lm: SpeechLM, items: Sequence[Item], condition: Condition, batch_size: int) -> list[str]:
    """Return the transcripts of the recordings of `items` in a condition, decoded greedily."""
    from vita_audio.data.audio import load_audio
    from vita_audio.inference.pipeline import GREEDY
    from vita_audio.inference.tasks import asr_conversation

    conversations = []
    for item in items:
        wave = load_audio(item.audio, INPUT_RATE).numpy()
        changed = condition(wave, np.random.default_rng(zlib.crc32(item.id.encode())))
        conversations.append(asr_conversation((changed.astype(np.float32), INPUT_RATE)))
    batches = [conversations[start : start + batch_size] for start in range(0, len(items), batch_size)]
    options = {"decode_audio": False, "max_new_tokens": BENCHMARK.max_new_tokens, **GREEDY}
    return [answer.text.strip() for batch in batches for answer in speech_lm.respond_batch(batch, **options)]


def measure(speech_lm: SpeechLM, items: Sequence[Item], batch_size: int) -> dict[str, Score]:
    """Return the word errors of each condition, printing them."""
    from evaluation.metrics.significance import compare
    from evaluation.tasks import Value, errors

    scores: dict[str, Score] = {}
    for name, condition in CONDITIONS.items():
        scores[name] = score = errors(recognise(speech_lm, items, condition, batch_size), items, BENCHMARK)
        change = 100 * compare(score, scores[RECORDED]).difference
        print(f"{name:>32}: {Value.of('wer', score)}, {change:+.1f} points", flush=True)
    return scores


def draw_conditions(values: Mapping[str, Value], path: Path) -> None:
    """Plot the word error rate of each condition with its interval."""
    from vita_audio.plots import new_figure

    figure = new_figure(7, 3.2, layout="constrained")
    axis = figure.subplots()
    wers = np.array([100 * value.value for value in values.values()])
    ends = np.array([[100 * value.low, 100 * value.high] for value in values.values()]).T
    axis.barh(list(values), wers, xerr=np.abs(ends - wers), color="tab:blue", error_kw={"capsize": 3})
    axis.invert_yaxis()
    axis.set(xlabel="words wrong, %", xlim=(0, None))
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("tools.demo.hearing", __doc__)
    add_model_options(parser)
    add, positive = parser.add_argument, in_range(int, minimum=1)
    add("--corpus", required=True, type=Path, help="folder of tools.demo.make_corpus")
    add("--output", required=True, type=Path, help="folder for hearing.json and hearing.png")
    add("--limit", type=positive, help="recordings (default: all)")
    add("--batch-size", type=positive, default=20, help="recordings transcribed together")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("tools.demo.hearing"):
        items = draw(BENCHMARK.items(options.corpus), options.limit)
        quieten_transformers()
        speech_lm = load_speech_lm(options, load_audio_tokenizer(options))
        scores = measure(speech_lm, items, options.batch_size)

        from evaluation.metrics.significance import compare
        from evaluation.tasks import Value

        values = {name: Value.of("wer", score) for name, score in scores.items()}
        options.output.mkdir(parents=True, exist_ok=True)
        draw_conditions(values, options.output / "hearing.png")
        rows = {
            name: {**asdict(value), "less_as_recorded": asdict(compare(scores[name], scores[RECORDED]))}
            for name, value in values.items()
        }
        write_json(
            options.output / "hearing.json",
            {"model": str(options.model), "num_recordings": len(items), "wer": rows},
        )


if __name__ == "__main__":
    main()
