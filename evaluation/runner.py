"""Let a model answer benchmarks and a judge transcribe its speech, in any number of processes, resumable by sample.

Every process takes every n-th item. An answer is recorded, after its wave, as soon as it exists, and is never made
again. A sample that fails is recorded with its error and scored as an empty answer; a benchmark that fails is recorded
as failed, and the next one begins.
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


@dataclass(frozen=True)
class Shard:
    """The share of the work that this process does."""

    rank: int = 0
    size: int = 1

    def of(self, elements: Sequence[Element]) -> list[Element]:
        return list(elements[self.rank :: self.size])


@dataclass(kw_only=True)
class Runner:
    """Runs benchmarks in modes; the model and the judges are loaded when first needed.

    Attributes:
        load_model: Function that loads the model.
        load_judge: Function that loads the judge of a language.
        output: Folder; answers are written to output/MODE/BENCHMARK.
        max_new_tokens: Longest answer; None: the benchmark's.
        seed: Seed for sampling; a sampled answer also depends on its batch.
        retry_errors: Run samples again that failed earlier.
        measures: Further measures of speech, keys of `evaluation.tasks.MEASURES`.
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
        """Answer and judge this process's share of the items; an error is recorded as the benchmark's failure.

        Raises: the errors of `load_model`, without which nothing can continue.
        """
        folder = self.output / mode / benchmark.name
        remaining = self._unanswered(items, folder)
        if remaining and mode != ORIGINAL:
            self._need_model()
        try:
            self._answer(benchmark, remaining, mode, folder)
            if TASKS[benchmark.task].speaks:
                self._judge(benchmark, items, mode, folder)
        except Exception as error:
            logger.exception("%s %s failed", mode, benchmark.name)
            write_json(folder / f"{FAILED}-{self.shard.rank}.json", {"error": describe(error)})

    def time_alone(self, benchmark: Benchmark, items: Sequence[Item], mode: str) -> None:
        """Time the language model on some items one at a time, greedily and without speech synthesis."""
        file = RowFile(self.output / mode / benchmark.name, ALONE, self.shard.rank)
        done = file.read()
        remaining = [item for item in items if item.id not in done]
        if remaining:
            self._need_model()
            self._timed(benchmark, remaining[0], mode)  # discarded: the first call is slower
        for item in remaining:
            file.append([{"id": item.id, **self._timed(benchmark, item, mode)}])

    def _timed(self, benchmark: Benchmark, item: Item, mode: str) -> Row:
        options = {"decode_audio": False, "max_new_tokens": self._longest(benchmark), **GREEDY}
        try:
            timings = self._model.respond(item.conversation, InterleavePlan.parse(mode), **options).timings
        except Exception as error:
            return {"error": describe(error)}
        return {"num_tokens": timings.num_tokens, "generate_seconds": timings.generate_seconds}

    def _need_model(self) -> None:
        self._model = self._model or self.load_model()

    def _longest(self, benchmark: Benchmark) -> int:
        return self.max_new_tokens or benchmark.max_new_tokens

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
        options["max_new_tokens"] = self._longest(benchmark)
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
    """Write the wave, if there is any, and return the row; its times are this answer's share of the batch's."""
    timings, wav, seconds = response.timings, None, 0.0
    if response.wave is not None and len(response.wave):
        wav, seconds = f"audio/{_file_name(item.id)}.wav", len(response.wave) / response.sample_rate
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / wav, response.wave.numpy(), response.sample_rate)
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
    """Return a name without slashes that is unique to an id."""
    return name.replace("%", "%25").replace("/", "%2F")


def _recording_row(item: Item) -> Row:
    return {"id": item.id, "text": item.references[0], "wav": str(Path(item.recording).resolve())}


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
