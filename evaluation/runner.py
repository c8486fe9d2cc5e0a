"""Let a model answer benchmarks and a judge transcribe its speech, in any number of processes, resumable by sample.

Each of n processes takes every n-th item. An answer is recorded once its wave is written, and is not generated again. A
sample that fails is recorded with its error and scored as an empty answer; a benchmark that fails is recorded as
failed, and the next one begins.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar

import soundfile
import torch
from tqdm import tqdm

from evaluation.judges import Judge, PredictedMos, Sound, SpeakerSimilarity
from evaluation.results import ALONE, ANSWERS, FAILED, ORIGINAL, TRANSCRIPTS
from evaluation.run_folder import Row, RowFile, progress_bar
from evaluation.suites import Benchmark, Item
from evaluation.tasks import MOS, SIMILARITY, TASKS
from vita_audio.constants import INPUT_RATE
from vita_audio.data.audio import load_audio
from vita_audio.files.atomic import write_json
from vita_audio.inference.pipeline import GREEDY, Response, SpeechLM
from vita_audio.interleave import InterleavePlan

MAX_ERRORS_IN_A_ROW = 20  # more are a fault of the model or the machine, not of the samples
JUDGE_BATCH = 16

logger = logging.getLogger(__name__)
Element = TypeVar("Element")
Meter = SpeakerSimilarity | PredictedMos
METERS: dict[str, Callable[[], Meter]] = {SIMILARITY: SpeakerSimilarity, MOS: PredictedMos}


class BenchmarkError(RuntimeError):
    """A benchmark cannot continue."""


@dataclass(kw_only=True)
class Runner:
    """Runs benchmarks in modes; the model and the judges are loaded when first needed.

    Attributes:
        load_model: Function that loads the model.
        load_judge: Function that loads the judge of a language.
        output: Folder; answers are written to output/MODE/BENCHMARK.
        rank: Number of this process.
        size: Number of processes.
        max_new_tokens: Longest answer; None: the benchmark's.
        decoding: Further arguments of `SpeechLM.respond`, such as `acceptance`.
        seed: Seed for sampling; a sampled answer also depends on its batch.
        retry_errors: Retry samples that failed earlier.
        measures: Further measures of speech, keys of `evaluation.tasks.MEASURES`.
    """

    load_model: Callable[[], SpeechLM]
    load_judge: Callable[[str], Judge]
    output: Path
    rank: int = 0
    size: int = 1
    batch_size: int = 8
    max_new_tokens: int | None = None
    decoding: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 42
    measures: tuple[str, ...] = ()
    retry_errors: bool = False

    def __post_init__(self):
        self.load_model, self.load_judge = cache(self.load_model), cache(self.load_judge)

    @cached_property
    def _meters(self) -> dict[str, Meter]:
        return {name: METERS[name]() for name in self.measures}

    def run(self, benchmark: Benchmark, items: Sequence[Item], mode: str) -> None:
        """Answer and judge this process's share of the items; an error is recorded as the benchmark's failure.

        Raises: the errors of `load_model`, without which nothing can continue.
        """
        folder = self.output / mode / benchmark.name
        answered = self._done(RowFile(folder, ANSWERS).read())
        remaining = [item for item in items[self.rank :: self.size] if item.id not in answered]
        if remaining and mode != ORIGINAL:
            self.load_model()
        try:
            self._answer(benchmark, remaining, mode, folder)
            if TASKS[benchmark.task].speaks:
                self._judge(benchmark, items, mode, folder)
        except Exception as error:
            logger.exception("%s %s failed", mode, benchmark.name)
            write_json(folder / f"{FAILED}-{self.rank}.json", {"error": describe(error)})

    def time_alone(self, benchmark: Benchmark, items: Sequence[Item], mode: str) -> None:
        """Time the language model on some items one at a time, greedily and without speech synthesis."""
        file = RowFile(self.output / mode / benchmark.name, ALONE, self.rank)
        done = file.read()
        remaining = [item for item in items if item.id not in done]
        if remaining:
            self.load_model()
            self._timed(benchmark, remaining[0], mode)  # discarded: the first call is slower
        for item in remaining:
            file.append([{"id": item.id, **self._timed(benchmark, item, mode)}])

    def _timed(self, benchmark: Benchmark, item: Item, mode: str) -> Row:
        options = {"decode_audio": False, **self._limits(benchmark), **GREEDY}
        try:
            timings = self.load_model().respond(item.conversation, InterleavePlan.parse(mode), **options).timings
        except Exception as error:
            return {"error": describe(error)}
        return {"num_tokens": timings.num_tokens, "generate_seconds": timings.generate_seconds}

    def _limits(self, benchmark: Benchmark) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens or benchmark.max_new_tokens, **self.decoding}

    def _done(self, rows: Mapping[str, Row]) -> set[str]:
        return {name for name, row in rows.items() if not (self.retry_errors and "error" in row)}

    def _answer(self, benchmark: Benchmark, items: Sequence[Item], mode: str, folder: Path) -> None:
        file = RowFile(folder, ANSWERS, self.rank)
        if mode == ORIGINAL:
            recorded = [(item, Path(item.recording).resolve()) for item in items if item.recording]
            file.append({"id": item.id, "text": item.references[0], "wav": str(wav)} for item, wav in recorded)
            return
        errors_in_a_row = 0
        with self._bar(f"{mode} {benchmark.name}", items) as bar:
            for batch in batches(items, self.batch_size):
                for rows in self._answered(benchmark, batch, mode, folder):
                    file.append(rows)
                    bar.update(len(rows))
                    errors_in_a_row = errors_in_a_row + 1 if "error" in rows[-1] else 0
                    if errors_in_a_row >= MAX_ERRORS_IN_A_ROW:
                        raise BenchmarkError(f"{errors_in_a_row} samples in a row failed, last: {rows[-1]['error']}")

    def _answered(self, benchmark: Benchmark, batch: Sequence[Item], mode: str, folder: Path) -> Iterator[list[Row]]:
        """Yield the rows of a batch, or if it fails those of its samples one by one."""
        try:
            rows = self._respond(benchmark, batch, mode, folder)
        except Exception as error:
            reason = describe(error)  # the text only: the traceback keeps the batch in memory
        else:
            yield rows
            return
        if len(batch) == 1:
            yield [{"id": batch[0].id, "text": "", "wav": None, "error": reason}]
            return
        logger.warning("%s %s: a batch of %d failed, trying one by one: %s", mode, benchmark.name, len(batch), reason)
        for item in batch:
            yield from self._answered(benchmark, [item], mode, folder)

    def _respond(self, benchmark: Benchmark, batch: Sequence[Item], mode: str, folder: Path) -> list[Row]:
        options: dict[str, Any] = {} if benchmark.sampled else dict(GREEDY)
        options |= self._limits(benchmark)
        torch.manual_seed(self.seed + zlib.crc32(batch[0].id.encode()))
        responses = self.load_model().respond_batch(
            [item.conversation for item in batch],
            InterleavePlan.parse(mode),
            decode_audio=TASKS[benchmark.task].speaks,
            **options,
        )
        return [
            _answer_row(item, response, folder, len(batch)) for item, response in zip(batch, responses, strict=True)
        ]

    def _judge(self, benchmark: Benchmark, items: Sequence[Item], mode: str, folder: Path) -> None:
        file = RowFile(folder, TRANSCRIPTS, self.rank)
        share, heard, answers = items[self.rank :: self.size], self._done(file.read()), RowFile(folder, ANSWERS).read()
        remaining = [item for item in share if answers.get(item.id, {}).get("wav") and item.id not in heard]
        if not remaining:
            return
        judge = self.load_judge(benchmark.language)
        with self._bar(f"{mode} {benchmark.name} judged", remaining) as bar:
            for batch in batches(remaining, JUDGE_BATCH):
                paths = [folder / answers[item.id]["wav"] for item in batch]
                file.append(_heard(judge, self._meters, paths, batch))
                bar.update(len(batch))

    def _bar(self, name: str, items: Sequence[Item]) -> tqdm:
        name = name if self.size == 1 else f"{name} [{self.rank}]"
        return progress_bar(total=len(items), desc=name, unit="sample", disable=not items)


def _answer_row(item: Item, response: Response, folder: Path, batch_size: int) -> Row:
    """Write the wave, if there is any, and return the row; its times are this answer's share of the batch's."""
    timings, wav, seconds = response.timings, None, 0.0
    if response.wave is not None and len(response.wave):
        name = item.id.replace("%", "%25").replace("/", "%2F")  # without slashes, and unique to the id
        wav, seconds = f"audio/{name}.wav", len(response.wave) / response.sample_rate
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / wav, response.wave.numpy(), response.sample_rate)
    return {
        "id": item.id,
        "text": response.text.strip(),
        "wav": wav,
        "speech_seconds": seconds,
        "num_codes": len(response.codes),
        "ids_digest": hashlib.blake2b(repr(response.ids).encode(), digest_size=8).hexdigest(),
        "num_tokens": timings.num_tokens,
        "num_backbone_passes": timings.num_backbone_passes,
        "num_verified": timings.counts.num_verified,
        "num_accepted": timings.counts.num_accepted,
        "generate_seconds": timings.generate_seconds / batch_size,
        "total_seconds": timings.total_seconds / batch_size,
    }


def _heard(judge: Judge, meters: Mapping[str, Meter], paths: Sequence[Path], items: Sequence[Item]) -> list[Row]:
    """Return rows of transcripts and measures; speech that cannot be read or measured counts as silence."""
    rows = [{"id": item.id, "transcript": "", "judge": judge.name} for item in items]
    sounds: dict[int, Sound] = {}
    for place, (path, item) in enumerate(zip(paths, items, strict=True)):
        try:
            sound = load_audio(path, judge.sample_rate), judge.sample_rate
            rows[place]["measures"] = _measures(meters, sound, item.voice)
            sounds[place] = sound
        except (OSError, ValueError, soundfile.LibsndfileError) as error:
            rows[place]["error"] = describe(error)
    for place, transcript in zip(sounds, judge.transcribe(list(sounds.values())), strict=True):
        rows[place]["transcript"] = transcript
    return rows


def _measures(meters: Mapping[str, Meter], sound: Sound, voice: str | None) -> dict[str, float]:
    names = [name for name in meters if voice is not None or name != SIMILARITY]
    prompt = (load_audio(voice, INPUT_RATE), INPUT_RATE) if SIMILARITY in names else None
    return {name: meters[name].measure(sound, prompt) for name in names}


def batches(elements: Sequence[Element], size: int) -> Iterator[Sequence[Element]]:
    """Yield successive slices of at most `size` elements."""
    return (elements[start : start + size] for start in range(0, len(elements), size))


def describe(error: Exception) -> str:
    """Return the type and the text of an error in one line of at most 500 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
