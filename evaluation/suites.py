"""Benchmarks: the paths of their data, and items made from its rows with the prompts of the public evaluation.

The public sets are in one folder, under the paths below (`evaluation.prepare` converts downloads): JSON lines in the
training format, whose answer is the reference, and the lists of Seed-TTS. The `demo` suite reads the held-out files of
`tools.demo.make_corpus`. Importing this module is fast: reading the data imports the rest.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from evaluation.metrics.score import check_unique
from vita_audio.constants import AUDIO_TAG

if TYPE_CHECKING:
    from vita_audio.inference.tasks import Sample

ASR, TTS, SPOKEN_QA, TEXT_QA = "asr", "tts", "spoken_qa", "text_qa"
SPEAKER_SYSTEM = f"Speaker Metadata:\nAudio: {AUDIO_TAG}\n"  # system message of Seed-TTS, to keep a voice
CHARACTER_LANGUAGES = ("zh",)  # languages scored by characters
MAX_NEW_TOKENS = 1024
EVERY = "every"  # key of a limit on the items of all benchmarks

Element = TypeVar("Element")


@dataclass(frozen=True)
class Item:
    """One sample of a benchmark.

    Attributes:
        id: Unique in its benchmark; also names the file of a spoken answer.
        conversation: The model's input.
        references: The transcript or the text to speak (one), or all accepted answers.
        audio: The model's audio input, for reports.
        text: The question or the text to speak, if known.
        recording: A person speaking the reference; errors in its transcript are the judge's own.
        voice: Speech in the voice that the answer should have.
        keyword_last: The answer is a sentence that ends with the reference.
    """

    id: str
    conversation: Sample
    references: tuple[str, ...]
    audio: str | None = None
    text: str | None = None
    recording: str | None = None
    voice: str | None = None
    keyword_last: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of question and references; audio files count by their names, since folders may move."""
        names = [Path(audio).name for audio in self.conversation.get("audios", ())]
        content = (self.conversation["messages"], names, self.references, self.keyword_last)
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=8).hexdigest()


def fingerprints(items: Iterable[Item]) -> dict[str, str]:
    """Return the fingerprints of items by id."""
    return {item.id: item.fingerprint for item in items}


def draw(elements: Sequence[Element], limit: int | None) -> list[Element]:
    """Return `limit` elements drawn with a fixed seed, in their order, or all if there are not more."""
    if limit is None or limit >= len(elements):
        return list(elements)
    return [elements[index] for index in sorted(random.Random(0).sample(range(len(elements)), limit))]


def limit_of(limits: Mapping[str, int], name: str) -> int | None:
    """Return the number of items to draw of a benchmark: its own limit, or the one of EVERY, or None."""
    return limits.get(name, limits.get(EVERY))


@dataclass(frozen=True)
class Benchmark:
    """A data set and its task.

    Attributes:
        task: Key of `evaluation.tasks.TASKS`.
        path: Path of its file in the data folder of the suite.
        read: Function that reads the items from that file.
        rule: Scoring rule of the public evaluation, a key of `evaluation.tasks.PUBLIC_RULES`; None: not scored there.
        sampled: Sample with the checkpoint's settings, as the public evaluation does for synthesis, instead of greedy.
    """

    name: str
    task: str
    path: str
    read: Callable[[Path, Benchmark], list[Item]]
    language: str = "en"
    rule: str | None = None
    sampled: bool = False
    max_new_tokens: int = MAX_NEW_TOKENS

    def key(self, metric: str) -> str:
        """Return the key of a metric in the results: {errors} is wer or cer, depending on the language."""
        return metric.format(errors="cer" if self.language in CHARACTER_LANGUAGES else "wer")

    def items(self, folder: Path, limit: int | None = None) -> list[Item]:
        """Read all items, or a fixed draw of `limit` of them.

        Raises: FileNotFoundError if the set is missing; ValueError naming the line that is wrong.
        """
        path = folder / self.path
        if not path.is_file():
            raise FileNotFoundError(f"no {path}")
        items = self.read(path, self)
        if not items:
            raise ValueError(f"{path} must have a row, got none")
        check_unique([item.id for item in items], str(path))
        for item in items:
            if not all(isinstance(reference, str) for reference in item.references):
                raise ValueError(f"{path}: references of {item.id} must be texts, got {list(item.references)}")
            if not any(reference.strip() for reference in item.references):
                raise ValueError(f"{path}: {item.id} must have a reference with words, got {list(item.references)}")
        return draw(items, limit)


def read_samples(path: Path, benchmark: Benchmark) -> list[Item]:
    """Read JSON lines with messages (optional system, user, assistant) and audios, as in the public evaluation.

    The optional field `question` holds the text of a spoken question.
    """
    return [_sample_item(place, row, path, benchmark) for place, row in read_rows(path)]


def _sample_item(number: int, row: Mapping[str, Any], path: Path, benchmark: Benchmark) -> Item:
    from vita_audio.data.mixture import resolve
    from vita_audio.inference.tasks import text_conversation
    from vita_audio.text import OMNI_SYSTEM, TTS_PROMPT

    place = f"{path}:{number}"
    messages, audios = row.get("messages", ()), [str(resolve(audio, path.parent)) for audio in row.get("audios") or ()]
    roles = [message.get("role") for message in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise ValueError(f"{place}: messages must be of system, if any, user, and assistant, got {roles}")
    if len(audios) != 1:
        raise ValueError(f"{place}: a sample must have one audio, got {len(audios)}")
    answers = messages[-1]["content"]
    asked = [{"role": message["role"], "content": _only(message["content"], place)} for message in messages[:-1]]
    item = Item(
        id=f"{number - 1:05d}-{Path(audios[0]).stem}",
        conversation={"messages": asked, "audios": audios},
        references=tuple(answers) if isinstance(answers, list) else (answers,),
        audio=audios[0],
        text=row.get("question"),
    )
    if benchmark.task == TTS:
        text = asked[-1]["content"].removeprefix(TTS_PROMPT)
        conversation = {"messages": asked, "audios": []}
        return replace(item, conversation=conversation, references=(text,), text=text, audio=None, recording=audios[0])
    if benchmark.task == SPOKEN_QA and roles[0] != "system":
        asked.insert(0, {"role": "system", "content": OMNI_SYSTEM})
    if benchmark.task == TEXT_QA:
        if not item.text:
            raise FileNotFoundError(f"no text of the question in {place}; add a field `question`")
        return replace(item, conversation=text_conversation(item.text), audio=None)
    return item


def _only(content: str | list[str], place: str) -> str:
    """Return the text of a turn, which may be given as a list of one."""
    if isinstance(content, str):
        return content
    if len(content) != 1:
        raise ValueError(f"{place}: the question must be one text, got {len(content)}")
    return content[0]


def read_seedtts(path: Path, benchmark: Benchmark) -> list[Item]:
    """Read a list of Seed-TTS: name | transcript of the voice prompt | its audio | text to speak [| its recording]."""
    from vita_audio.text import TTS_PROMPT

    items = []
    for number, line in _lines(path):
        fields = line.strip().split("|")
        if len(fields) not in (4, 5):
            raise ValueError(f"{path}:{number}: must be `name|text|audio|text`, got {line!r}")
        voice = str(path.parent / fields[2])
        messages = [{"role": "system", "content": SPEAKER_SYSTEM}, {"role": "user", "content": TTS_PROMPT + fields[3]}]
        items.append(
            Item(
                id=fields[0],
                conversation={"messages": messages, "audios": [voice]},
                references=(fields[3],),
                text=fields[3],
                recording=str(path.parent / fields[4]) if len(fields) == 5 else None,
                voice=voice,
            )
        )
    return items


def read_seedtts_any_voice(path: Path, benchmark: Benchmark) -> list[Item]:
    """Read the same texts without their voice prompts."""
    from vita_audio.inference.tasks import tts_conversation

    return [
        replace(item, conversation=tts_conversation(item.text), voice=None) for item in read_seedtts(path, benchmark)
    ]


def read_heldout(path: Path, benchmark: Benchmark) -> list[Item]:
    """Read held-out rows of the demo corpus; the answer to a question is a sentence that ends with its keyword."""
    from vita_audio.data.mixture import resolve
    from vita_audio.inference.tasks import asr_conversation, sts_conversation, text_conversation, tts_conversation

    makers = {ASR: asr_conversation, TTS: tts_conversation, SPOKEN_QA: sts_conversation, TEXT_QA: text_conversation}
    make, has_text = makers[benchmark.task], benchmark.task in (TTS, TEXT_QA)
    items = []
    for _, row in read_rows(path):
        audio = str(resolve(row["audio"], path.parent))
        items.append(
            Item(
                id=row["id"],
                conversation=make(row["text"] if has_text else audio),
                references=(row.get("keyword", row["reference"]),),
                audio=None if has_text else audio,
                text=row.get("text"),
                recording=audio if benchmark.task == TTS else None,
                keyword_last="keyword" in row,
            )
        )
    return items


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file by line number.

    Raises: FileNotFoundError; ValueError naming a line that is not a JSON object.
    """
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: must be one JSON object, got {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: must be one JSON object, got {line!r}")
        yield number, row


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield non-blank lines by number; only a newline ends a line, not U+2028 and the like inside a text."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


READERS = {
    "samples": read_samples,
    "seedtts": read_seedtts,
    "seedtts_any_voice": read_seedtts_any_voice,
    "heldout": read_heldout,
}


def _suite(common: Mapping[str, Any], **benchmarks: Mapping[str, Any]) -> tuple[Benchmark, ...]:
    fields = {name: {**common, **values} for name, values in benchmarks.items()}
    return tuple(Benchmark(name, read=READERS[values.pop("reader")], **values) for name, values in fields.items())


_LISTED = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
SUITES = {name: _suite(**listed) for name, listed in _LISTED.items()}
SUITES["paper"] = (*SUITES["sqa"], *SUITES["asr"], *SUITES["tts"])
DEMO = SUITES["demo"]
DEMO_CORPUS = tuple(  # benchmarks whose data is the demo corpus
    one for name, suite in SUITES.items() if name in ("demo", "outside") or name.startswith("demo-") for one in suite
)
BENCHMARKS = {benchmark.name: benchmark for suite in SUITES.values() for benchmark in suite}


def get_benchmarks(names: Iterable[str]) -> list[Benchmark]:
    """Return the benchmarks of suites and single ones, each once. Raises: ValueError for an unknown name."""
    found: dict[str, Benchmark] = {}
    for name in names:
        if name not in SUITES and name not in BENCHMARKS:
            raise ValueError(f"suite must be one of {', '.join([*SUITES, *BENCHMARKS])}, got {name!r}")
        chosen: Sequence[Benchmark] = SUITES.get(name) or (BENCHMARKS[name],)
        found |= {benchmark.name: benchmark for benchmark in chosen}
    return list(found.values())
