"""Convert the public download of a benchmark to the layout that `evaluation.run --data` reads.

    python -m evaluation.prepare librispeech --from LibriSpeech --data data/benchmarks

Audio stays where it is and is referred to by its path, unless it has to be extracted from an archive or cut from a
longer recording. The folder given by --from must hold:
    librispeech   dev-clean, dev-other, test-clean, test-other, as unpacked (openslr.org/12)
    libritts      test-clean, as unpacked (openslr.org/60)
    aishell       data_aishell, its wav/test and transcript folders unpacked (openslr.org/33)
    wenetspeech   WenetSpeech.json and the audio folder it names
    fleurs        en_us and cmn_hans_cn, each with test.tsv and audio/test unpacked (google/fleurs)
    seedtts       seedtts_testset, as unpacked (BytedanceSpeech/seed-tts-eval)
    llama-questions, trivia-qa, web-questions   the parquet files of fixie-ai/llama-questions, trivia_qa-audio, and
                  spoken-web-questions
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import soundfile

from evaluation.suites import BENCHMARKS, Benchmark
from vita_audio.command_line import OneLineParser
from vita_audio.constants import AUDIO_TAG
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import atomic_path

Sample = dict[str, Any]
Reader = Callable[[Path, Benchmark, Path], Iterable[Sample]]  # download, benchmark, data folder


def recognition_sample(audio: Path, text: str) -> Sample:
    from vita_audio.text import ASR_PROMPT

    return _sample(f"{ASR_PROMPT}\n{AUDIO_TAG}", text, audio)


def question_sample(audio: Path, question: str, answers: Sequence[str]) -> Sample:
    return _sample(AUDIO_TAG, list(answers), audio) | {"question": question}


def _sample(user: str, assistant: str | list[str], audio: Path) -> Sample:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": [str(audio.resolve())]}


def _audio_folder(data: Path, benchmark: Benchmark) -> Path:
    """Return the folder for audio that is extracted or cut."""
    return (data / benchmark.path).parent / "audio"


def read_librispeech(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield recognition_sample(transcripts.parent / f"{name}.flac", text)


def read_libritts(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    from vita_audio.text import TTS_PROMPT

    for path in sorted(folder.glob("*/*/*.normalized.txt")):
        recording = path.with_name(path.name.replace(".normalized.txt", ".wav"))
        yield _sample(TTS_PROMPT + path.read_text(encoding="utf-8").strip(), AUDIO_TAG, recording)


def read_aishell(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    transcript = folder / "transcript" / "aishell_transcript_v0.8.txt"
    lines = (line.split() for line in transcript.read_text(encoding="utf-8").splitlines())
    texts = {words[0]: "".join(words[1:]) for words in lines if words}
    waves = sorted((folder / "wav" / "test").glob("*/*.wav"))
    return (recognition_sample(path, texts[path.stem]) for path in waves if path.stem in texts)


def read_wenetspeech(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    """Cut the segments of a test set out of the recordings."""
    for recording in _wenetspeech_recordings(folder):
        for segment in recording["segments"]:
            if Path(benchmark.path).stem in segment["subsets"]:
                path = _audio_folder(data, benchmark) / f"{segment['sid']}.flac"
                if not path.exists():
                    _cut(folder / recording["path"], segment["begin_time"], segment["end_time"], path)
                yield recognition_sample(path, segment["text"])


@cache
def _wenetspeech_recordings(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "WenetSpeech.json").read_text(encoding="utf-8"))["audios"]


def _cut(source: Path, begin: float, end: float, path: Path) -> None:
    """Write a part of a recording, in seconds, as FLAC; atomic, since existing files are not cut again."""
    with soundfile.SoundFile(source) as file:
        file.seek(round(begin * file.samplerate))
        wave = file.read(round((end - begin) * file.samplerate))
    with atomic_path(path) as partial:
        soundfile.write(partial, wave, file.samplerate, format="FLAC")


def read_fleurs(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    """Read the list, whose columns are id, file, text as written, text without punctuation, ..."""
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield recognition_sample(folder / "audio" / "test" / row[1], row[3])


def read_questions(folder: Path, benchmark: Benchmark, data: Path) -> Iterator[Sample]:
    """Read the parquet files whose names begin with the split, or all of them if there are none such."""
    from pyarrow import parquet

    paths = sorted(folder.rglob("*.parquet"))
    paths = [path for path in paths if path.name.startswith(Path(benchmark.path).stem)] or paths
    audio_folder = _audio_folder(data, benchmark)
    audio_folder.mkdir(parents=True, exist_ok=True)
    batches = (batch for path in paths for batch in parquet.ParquetFile(path).iter_batches(batch_size=64))
    for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
        audio = audio_folder / f"{number:05d}.wav"
        wave, rate = soundfile.read(io.BytesIO(_field(row, "question_audio", "audio")["bytes"]))
        soundfile.write(audio, wave, rate)
        yield question_sample(audio, row["question"], _answers(_field(row, "answers", "answer")))


def _field(row: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        if name in row:
            return row[name]
    raise ValueError(f"a row of questions must have {' or '.join(names)}, got {', '.join(row)}")


def _answers(given: str | Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return all accepted answers; TriviaQA gives a value and its aliases."""
    if isinstance(given, Mapping):
        return list(dict.fromkeys([given["value"], *given["aliases"]]))
    return [given] if isinstance(given, str) else list(given)


DOWNLOADS: dict[str, tuple[Reader, dict[str, str]]] = {  # reader, and folder in the download by benchmark
    "librispeech": (
        read_librispeech,
        {
            f"librispeech-{split}-{kind}": f"{folder}-{kind}"
            for split, folder in (("validation", "dev"), ("test", "test"))
            for kind in ("clean", "other")
        },
    ),
    "libritts": (read_libritts, {"libritts-test-clean": "test-clean"}),
    "aishell": (read_aishell, {"aishell-1": "."}),
    "wenetspeech": (read_wenetspeech, {"wenetspeech-meeting": ".", "wenetspeech-net": "."}),
    "fleurs": (read_fleurs, {"fleurs-en": "en_us", "fleurs-zh": "cmn_hans_cn"}),
    **{name: (read_questions, {name: "."}) for name in ("llama-questions", "trivia-qa", "web-questions")},
}
SEEDTTS = "seedtts"
NAMES = (*DOWNLOADS, SEEDTTS)


def prepare(name: str, source: Path, data: Path) -> dict[str, int]:
    """Write the benchmarks found in a download; return their sizes. Raises: ValueError for an empty one."""
    if name == SEEDTTS:  # has the right layout already
        shutil.copytree(source, data / "seedtts_testset", dirs_exist_ok=True)
        copied = [BENCHMARKS[f"seedtts-{part}"] for part in ("zh", "hard", "en")]
        return {benchmark.name: len(benchmark.items(data)) for benchmark in copied if (data / benchmark.path).is_file()}
    read, folders = DOWNLOADS[name]
    found = {BENCHMARKS[benchmark]: source / folder for benchmark, folder in folders.items()}
    return {
        benchmark.name: write_benchmark(data, benchmark.name, read(folder, benchmark, data))
        for benchmark, folder in found.items()
        if folder.is_dir()
    }


def write_benchmark(data: Path, name: str, samples: Iterable[Sample]) -> int:
    """Write a benchmark's file; return its number of samples. Raises: ValueError if there are none."""
    from tqdm import tqdm

    count = 0
    with atomic_path(data / BENCHMARKS[name].path) as path, path.open("w", encoding="utf-8") as file:
        for sample in tqdm(samples, desc=name, unit="sample"):
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise ValueError(f"no samples of {name}; is --from the folder that --help describes?")
    return count


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("evaluation.prepare", __doc__)
    parser.add_argument("suite", choices=NAMES, metavar="SUITE", help=", ".join(NAMES))
    parser.add_argument("--from", required=True, type=Path, dest="source", metavar="DIR", help="folder of the download")
    parser.add_argument("--data", type=Path, default=Path("data/benchmarks"), help="output folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if not options.source.is_dir():
        raise FileNotFoundError(f"no folder {options.source}; download {options.suite} and give its folder as --from")
    counts = prepare(options.suite, options.source, options.data)
    if not counts:
        raise FileNotFoundError(f"nothing of {options.suite} in {options.source}; see --help for what must be there")
    for name, count in counts.items():
        print(f"{name}: {count} samples in {options.data / BENCHMARKS[name].path}")


if __name__ == "__main__":
    with one_line_errors("evaluation.prepare"):
        main()
