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
from pathlib import Path
from typing import Any

import soundfile

from evaluation.suites import BENCHMARKS, Benchmark
from vita_audio.command_line import OneLineParser
from vita_audio.constants import AUDIO_TAG
from vita_audio.errors import one_line_errors
from vita_audio.files.atomic import atomic_path

USES = (("validation", "dev"), ("test", "test"))  # our name of a LibriSpeech split, and its folder

Sample = dict[str, Any]


def recognition_sample(audio: Path, text: str) -> Sample:
    from vita_audio.text import ASR_PROMPT

    return _sample(f"{ASR_PROMPT}\n{AUDIO_TAG}", text, audio)


def synthesis_sample(recording: Path, text: str) -> Sample:
    from vita_audio.text import TTS_PROMPT

    return _sample(TTS_PROMPT + text, AUDIO_TAG, recording)


def question_sample(audio: Path, question: str, answers: Sequence[str]) -> Sample:
    return _sample(AUDIO_TAG, list(answers), audio) | {"question": question}


def _sample(user: str, assistant: str | list[str], audio: Path) -> Sample:
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return {"messages": messages, "audios": [str(audio.resolve())]}


def write_benchmark(data: Path, name: str, samples: Iterable[Sample]) -> int:
    """Write the file of a benchmark atomically; return the number of its samples.

    Raises: ValueError if there are none.
    """
    from tqdm import tqdm

    count = 0
    with atomic_path(data / BENCHMARKS[name].path) as path, path.open("w", encoding="utf-8") as file:
        for sample in tqdm(samples, desc=name, unit="sample"):
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise ValueError(f"no samples of {name}; is --from the folder that --help describes?")
    return count


def prepare_librispeech(source: Path, data: Path) -> dict[str, int]:
    """Write the validation and test splits that are there; return the number of samples by benchmark."""
    splits = {f"librispeech-{use}-{kind}": f"{folder}-{kind}" for use, folder in USES for kind in ("clean", "other")}
    return {
        name: write_benchmark(data, name, _librispeech_samples(source / folder))
        for name, folder in splits.items()
        if (source / folder).is_dir()
    }


def _librispeech_samples(folder: Path) -> Iterator[Sample]:
    for transcripts in sorted(folder.glob("*/*/*.trans.txt")):
        for line in transcripts.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield recognition_sample(transcripts.parent / f"{name}.flac", text)


def prepare_libritts(source: Path, data: Path) -> dict[str, int]:
    """Write test-clean, with the normalised texts; return the number of samples by benchmark."""
    texts = sorted((source / "test-clean").glob("*/*/*.normalized.txt"))
    samples = (
        synthesis_sample(
            path.with_name(path.name.replace(".normalized.txt", ".wav")), path.read_text(encoding="utf-8").strip()
        )
        for path in texts
    )
    return {"libritts-test-clean": write_benchmark(data, "libritts-test-clean", samples)}


def prepare_aishell(source: Path, data: Path) -> dict[str, int]:
    """Write the test set; return the number of samples by benchmark."""
    transcript = source / "transcript" / "aishell_transcript_v0.8.txt"
    lines = (line.split() for line in transcript.read_text(encoding="utf-8").splitlines())
    texts = {words[0]: "".join(words[1:]) for words in lines if words}
    waves = sorted((source / "wav" / "test").glob("*/*.wav"))
    samples = (recognition_sample(path, texts[path.stem]) for path in waves if path.stem in texts)
    return {"aishell-1": write_benchmark(data, "aishell-1", samples)}


def prepare_wenetspeech(source: Path, data: Path) -> dict[str, int]:
    """Write both test sets, whose segments are cut out of the recordings; return the number of samples by benchmark."""
    recordings = json.loads((source / "WenetSpeech.json").read_text(encoding="utf-8"))["audios"]
    subsets = {"wenetspeech-meeting": "TEST_MEETING", "wenetspeech-net": "TEST_NET"}
    return {
        name: write_benchmark(data, name, _wenetspeech_samples(source, recordings, subset, data))
        for name, subset in subsets.items()
    }


def _wenetspeech_samples(
    source: Path, recordings: Sequence[Mapping[str, Any]], subset: str, data: Path
) -> Iterator[Sample]:
    folder = (data / BENCHMARKS["wenetspeech-net"].path).parent / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    for recording in recordings:
        for segment in recording["segments"]:
            if subset in segment["subsets"]:
                path = folder / f"{segment['sid']}.flac"
                if not path.exists():
                    _cut(source / recording["path"], segment["begin_time"], segment["end_time"], path)
                yield recognition_sample(path, segment["text"])


def _cut(source: Path, begin: float, end: float, path: Path) -> None:
    """Write a part of a recording, in seconds, as FLAC; atomic, since existing files are not cut again."""
    with soundfile.SoundFile(source) as file:
        file.seek(round(begin * file.samplerate))
        wave = file.read(round((end - begin) * file.samplerate))
    with atomic_path(path) as partial:
        soundfile.write(partial, wave, file.samplerate, format="FLAC")


def prepare_fleurs(source: Path, data: Path) -> dict[str, int]:
    """Write the English and Chinese test sets that are there; return the number of samples by benchmark."""
    languages = {"fleurs-en": "en_us", "fleurs-zh": "cmn_hans_cn"}
    return {
        name: write_benchmark(data, name, _fleurs_samples(source / folder))
        for name, folder in languages.items()
        if (source / folder).is_dir()
    }


def _fleurs_samples(folder: Path) -> Iterator[Sample]:
    """Read the list, whose columns are id, file, text as written, text without punctuation, ..."""
    with (folder / "test.tsv").open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield recognition_sample(folder / "audio" / "test" / row[1], row[3])


def prepare_seedtts(source: Path, data: Path) -> dict[str, int]:
    """Copy the download, which has the right layout already."""
    shutil.copytree(source, data / "seedtts_testset", dirs_exist_ok=True)
    benchmarks = [BENCHMARKS[f"seedtts-{name}"] for name in ("zh", "hard", "en")]
    return {benchmark.name: len(benchmark.items(data)) for benchmark in benchmarks if (data / benchmark.path).is_file()}


def prepare_questions(name: str, source: Path, data: Path) -> dict[str, int]:
    return {name: write_benchmark(data, name, _question_samples(source, data, BENCHMARKS[name]))}


def _question_samples(source: Path, data: Path, benchmark: Benchmark) -> Iterator[Sample]:
    from pyarrow import parquet

    folder = (data / benchmark.path).parent / "audio"
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for path in _parquet_files(source, Path(benchmark.path).stem):
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                audio = folder / f"{number:05d}.wav"
                wave, rate = soundfile.read(io.BytesIO(row[_column(row, "question_audio", "audio")]["bytes"]))
                soundfile.write(audio, wave, rate)
                yield question_sample(audio, row["question"], _answers(row[_column(row, "answers", "answer")]))
                number += 1


def _parquet_files(source: Path, split: str) -> list[Path]:
    """Return the files whose names begin with the split, or all files if none does."""
    paths = sorted(source.rglob("*.parquet"))
    return [path for path in paths if path.name.startswith(split)] or paths


def _column(row: Mapping[str, Any], *names: str) -> str:
    for name in names:
        if name in row:
            return name
    raise ValueError(f"a row of questions must have {' or '.join(names)}, got {', '.join(row)}")


def _answers(given: str | Sequence[str] | Mapping[str, Any]) -> list[str]:
    """Return all accepted answers; TriviaQA gives a value and its aliases."""
    if isinstance(given, Mapping):
        return list(dict.fromkeys([given["value"], *given["aliases"]]))
    return [given] if isinstance(given, str) else list(given)


def _questions(name: str) -> Callable[[Path, Path], dict[str, int]]:
    return lambda source, data: prepare_questions(name, source, data)


PREPARE: dict[str, Callable[[Path, Path], dict[str, int]]] = {
    "librispeech": prepare_librispeech,
    "libritts": prepare_libritts,
    "aishell": prepare_aishell,
    "wenetspeech": prepare_wenetspeech,
    "fleurs": prepare_fleurs,
    "seedtts": prepare_seedtts,
    **{name: _questions(name) for name in ("llama-questions", "trivia-qa", "web-questions")},
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser("evaluation.prepare", __doc__)
    parser.add_argument("suite", choices=PREPARE, metavar="SUITE", help=", ".join(PREPARE))
    parser.add_argument("--from", required=True, type=Path, dest="source", metavar="DIR", help="folder of the download")
    parser.add_argument("--data", type=Path, default=Path("data/benchmarks"), help="output folder")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    if not options.source.is_dir():
        raise FileNotFoundError(f"no folder {options.source}; download {options.suite} and give its folder as --from")
    counts = PREPARE[options.suite](options.source, options.data)
    if not counts:
        raise FileNotFoundError(f"nothing of {options.suite} in {options.source}; see --help for what must be there")
    for name, count in counts.items():
        print(f"{name}: {count} samples in {options.data / BENCHMARKS[name].path}")


if __name__ == "__main__":
    with one_line_errors("evaluation.prepare"):
        main()
