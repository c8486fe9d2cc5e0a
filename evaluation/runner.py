"""Let a model answer benchmarks and a judge listen, in any number of processes, sample by sample resumable.

Every process takes every n-th item. An answer is written down, after its wave, as soon as there is one; what is written
is never made again. A sample that cannot be answered is written down with its error and has said nothing; a benchmark
that cannot be run is written down as failed, and the next one begins.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import soundfile
import torch
from tqdm import tqdm

from evaluation.answers import write_wave
from evaluation.demo import write_json
from evaluation.figures import MOS, SIMILARITY
from evaluation.judges import Judge, Sound
from evaluation.metrics.speech import PredictedMos, SpeakerSimilarity
from evaluation.progress import progress_bar
from evaluation.run_folder import Row, RowFile
from evaluation.suites import Benchmark, Item
from evaluation.tasks import TASKS
from vita_audio.constants import INPUT_RATE
from vita_audio.data.audio import load_audio
from vita_audio.inference.pipeline import GREEDY, Response, SpeechLM
from vita_audio.interleave import InterleavePlan

ANSWERS, TRANSCRIPTS, FAILED = "answers", "transcripts", "failed"
ORIGINAL = "original"  # in place of a mode: the recordings of people, which the judge hears too
MAX_ERRORS_IN_A_ROW = 20  # then it is not the samples
JUDGE_BATCH = 16

logger = logging.getLogger(__name__)
Element = TypeVar("Element")
Meter = Callable[[Sound, Item], float]


class BenchmarkError(RuntimeError):
    """A benchmark cannot go on."""


@dataclass(frozen=True)
class Shard:
    """The part of the work that this process does."""

    rank: int = 0
    size: int = 1

    def of(self, elements: Sequence[Element]) -> list[Element]:
        return list(elements[self.rank :: self.size])


@dataclass
class Runner:
    """Runs benchmarks in modes; model and judges are loaded when they are first needed.

    Args:
        load_model, load_judge: The latter is given a language.
        output: Folder; answers go to output/MODE/BENCHMARK.
        max_new_tokens: Longest answer in place of the benchmark's.
        seed: Of sampled answers, which also depend on the batch they are in.
        retry_errors: Take samples again that could not be answered, or heard, earlier.
        measures: What to measure of speech, of `evaluation.figures.MEASURES`.
    """

    load_model: Callable[[], SpeechLM]
    load_judge: Callable[[str], Judge]
    output: Path
    shard: Shard = Shard()
    batch_size: int = 8
    max_new_tokens: int | None = None
    seed: int = 42
    measures: tuple[str, ...] = ()
    retry_errors: bool = False
    _model: SpeechLM | None = field(default=None, init=False)
    _judges: dict[str, Judge] = field(default_factory=dict, init=False)
    _meters: dict[str, Meter] = field(default_factory=dict, init=False)

    def run(self, benchmark: Benchmark, items: Sequence[Item], mode: str) -> None:
        """Answer and judge this process's part; an error is written down as the benchmark's failure.

        Raises: what loading the model raises, since nothing can go on without it.
        """
        folder = self.output / mode / benchmark.name
        remaining = self._unanswered(items, folder)
        if remaining and mode != ORIGINAL:
            self._model = self._model or self.load_model()
        try:
            self._answer(benchmark, remaining, mode, folder)
            if TASKS[benchmark.task].speaks:
                self._judge(benchmark, items, mode, folder)
        except Exception as error:
            logger.exception("%s %s failed", mode, benchmark.name)
            write_json(folder / f"{FAILED}-{self.shard.rank}.json", {"error": describe(error)})

    def _unanswered(self, items: Sequence[Item], folder: Path) -> list[Item]:
        done = self._done(RowFile(folder, ANSWERS).read())
        return [item for item in self.shard.of(items) if item.id not in done]

    def _done(self, rows: Mapping[str, Row]) -> set[str]:
        return {name for name, row in rows.items() if not (self.retry_errors and "error" in row)}

    def _answer(self, benchmark: Benchmark, items: Sequence[Item], mode: str, folder: Path) -> None:
        file = RowFile(folder, ANSWERS, self.shard.rank)
        if mode == ORIGINAL:
            file.append(_recording_row(item) for item in items if item.recording)
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
        """Yield the rows of a batch, or of each sample by itself if one of them breaks it."""
        try:
            rows = self._respond(benchmark, batch, mode, folder)
        except Exception as error:
            reason = describe(error)  # no more of it: its traceback holds what the batch has in memory
        else:
            yield rows
            return
        if len(batch) == 1:
            yield [{"id": batch[0].id, "text": "", "wav": None, "error": reason}]
            return
        logger.warning("%s %s: one by one what failed as a batch of %d: %s", mode, benchmark.name, len(batch), reason)
        for item in batch:
            yield from self._answered(benchmark, [item], mode, folder)

    def _respond(self, benchmark: Benchmark, batch: Sequence[Item], mode: str, folder: Path) -> list[Row]:
        options: dict[str, Any] = {} if benchmark.sampled else dict(GREEDY)
        options["max_new_tokens"] = self.max_new_tokens or benchmark.max_new_tokens
        torch.manual_seed(self.seed + zlib.crc32(batch[0].id.encode()))
        responses = self._model.respond_batch(
            [item.conversation for item in batch],
            InterleavePlan.parse(mode),
            decode_audio=TASKS[benchmark.task].speaks,
            **options,
        )
        return [
            _answer_row(item, response, folder, len(batch)) for item, response in zip(batch, responses, strict=True)
        ]

    def _judge(self, benchmark: Benchmark, items: Sequence[Item], mode: str, folder: Path) -> None:
        file = RowFile(folder, TRANSCRIPTS, self.shard.rank)
        share, heard, answers = self.shard.of(items), self._done(file.read()), RowFile(folder, ANSWERS).read()
        remaining = [item for item in share if answers.get(item.id, {}).get("wav") and item.id not in heard]
        if not remaining:
            return
        judge = self._judges.get(benchmark.language) or self.load_judge(benchmark.language)
        self._judges[benchmark.language] = judge
        self._meters = self._meters or {name: METERS[name]() for name in self.measures}
        with self._bar(f"{mode} {benchmark.name} judged", remaining) as bar:
            for batch in batches(remaining, JUDGE_BATCH):
                paths = [folder / answers[item.id]["wav"] for item in batch]
                file.append(_heard(judge, self._meters, paths, batch))
                bar.update(len(batch))

    def _bar(self, name: str, items: Sequence[Item]) -> tqdm:
        name = name if self.shard.size == 1 else f"{name} [{self.shard.rank}]"
        return progress_bar(total=len(items), desc=name, unit="sample", disable=not items)


def _answer_row(item: Item, response: Response, folder: Path, batch_size: int) -> Row:
    """Write the wave, if there is speech, and return the row; the seconds are this answer's share of its batch's."""
    timings, wav, seconds = response.timings, None, 0.0
    if response.wave is not None and len(response.wave):
        wav, seconds = f"audio/{_file_name(item.id)}.wav", len(response.wave) / response.sample_rate
        write_wave(folder / wav, response.wave, response.sample_rate)
    return {
        "id": item.id,
        "text": response.text.strip(),
        "wav": wav,
        "speech_seconds": seconds,
        "num_codes": len(response.codes),
        "num_tokens": timings.num_tokens,
        "num_backbone_passes": timings.num_backbone_passes,
        "generate_seconds": timings.generate_seconds / batch_size,
        "total_seconds": timings.total_seconds / batch_size,
    }


def _file_name(name: str) -> str:
    """Return a name without slashes, another one for every id."""
    return name.replace("%", "%25").replace("/", "%2F")


def _recording_row(item: Item) -> Row:
    return {"id": item.id, "text": item.references[0], "wav": str(Path(item.recording).resolve())}


def _heard(judge: Judge, meters: Mapping[str, Meter], paths: Sequence[Path], items: Sequence[Item]) -> list[Row]:
    """Rows of what is understood and measured of speech; what cannot be read or measured is heard as nothing."""
    rows = [{"id": item.id, "transcript": "", "judge": judge.name} for item in items]
    sounds: dict[int, Sound] = {}
    for place, (path, item) in enumerate(zip(paths, items, strict=True)):
        try:
            sound = load_audio(path, judge.sample_rate), judge.sample_rate
            rows[place]["measures"] = {name: meter(sound, item) for name, meter in meters.items() if _fits(name, item)}
            sounds[place] = sound
        except (OSError, ValueError, soundfile.LibsndfileError) as error:
            rows[place]["error"] = describe(error)
    for place, transcript in zip(sounds, judge.transcribe(list(sounds.values())), strict=True):
        rows[place]["transcript"] = transcript
    return rows


def _fits(measure: str, item: Item) -> bool:
    return measure != SIMILARITY or item.voice is not None


def _similarity_meter() -> Meter:
    similarity = SpeakerSimilarity()

    def measure(sound: Sound, item: Item) -> float:
        voice = load_audio(item.voice, INPUT_RATE), INPUT_RATE
        return similarity.similarities([sound], [voice]).value

    return measure


def _mos_meter() -> Meter:
    mos = PredictedMos()
    return lambda sound, item: mos.opinions([sound]).value


METERS: dict[str, Callable[[], Meter]] = {SIMILARITY: _similarity_meter, MOS: _mos_meter}


def batches(elements: Sequence[Element], size: int) -> Iterator[Sequence[Element]]:
    return (elements[start : start + size] for start in range(0, len(elements), size))


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
