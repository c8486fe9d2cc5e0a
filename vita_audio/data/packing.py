"""Pack a data mixture before training: documents are concatenated to rows of at most `max_length` tokens.

`position_ids` restart at 0 with each document, which separates documents in attention, so packs have no attention mask.
The report names every sample that is left out by file and line.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset
from tqdm import tqdm

from vita_audio.constants import IGNORE_INDEX, INPUT_RATE
from vita_audio.data.audio import AudioError, load_audio
from vita_audio.data.chat import EncodedConversation, SampleError, encode_conversation
from vita_audio.data.codes import AudioCodeStore, hash_file
from vita_audio.data.mixture import Mixture, Problem, Source, load_mixture, read_entries, resolve
from vita_audio.data.parallel import map_ordered
from vita_audio.files.atomic import atomic_folder, write_json
from vita_audio.interleave import InterleavePlan
from vita_audio.speech_features import num_encoder_rows
from vita_audio.text import CONTINUOUS, DISCRETE, TextTokenizer

NUM_OPEN_PACKS = 256  # with more open packs, packs are fuller but deviate further from the mixture's order
_LAYOUT = 2  # part of the cache key; increment it when the same inputs give other packs
_PACKS_PER_WRITE = 64
_PROBLEMS_SHOWN = 10  # of each kind, in a summary


@dataclass(frozen=True)
class PackedAudio:
    """An audio file of continuous input and the position of its placeholders, which encoder rows replace."""

    path: str
    start: int
    num_rows: int


@dataclass(frozen=True)
class Document:
    """One encoded sample: int32 ids and labels of the same length; float32 loss weights, None if all are 1.

    `source` and `line` tell where it comes from, as in the rows of a mixture.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    loss_weights: np.ndarray | None = None
    audios: tuple[PackedAudio, ...] = ()
    source: int = 0
    line: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class PackReport:
    """Statistics of the packs, and `problems`: the samples that were left out, each listed once."""

    max_length: int
    sources: list[Source]
    problems: list[Problem] = field(default_factory=list)
    num_documents: int = 0
    num_packs: int = 0
    num_tokens: int = 0
    num_targets: int = 0

    @property
    def fill(self) -> float:
        """Fraction of the packs' length that holds tokens."""
        return self.num_tokens / (self.num_packs * self.max_length) if self.num_packs else 0.0

    def summary(self) -> str:
        lines = [
            f"{self.num_documents} documents, {self.num_tokens} tokens ({self.num_targets} targets) in "
            f"{self.num_packs} packs of {self.max_length}, fill {self.fill:.1%}"
        ]
        lines += [f"no samples in {source.file}" for source in self.sources if not source.num_samples]
        for kind, count in sorted(Counter(problem.kind for problem in self.problems).items()):
            lines.append(f"left out, {kind}: {count}")
            shown = [problem for problem in self.problems if problem.kind == kind][:_PROBLEMS_SHOWN]
            lines += [f"  {problem}" for problem in shown]
            lines += [f"  and {count - len(shown)} more"] if count > len(shown) else []
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "fill": self.fill}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PackReport:
        fields = {name: value for name, value in values.items() if name != "fill"}
        fields["sources"] = [Source(**source) for source in fields["sources"]]
        fields["problems"] = [Problem(**problem) for problem in fields["problems"]]
        return cls(**fields)


@dataclass(frozen=True)
class PackRecipe:
    """All inputs that determine the packs, see `build_packs`."""

    mixture: Path
    tokenizer: TextTokenizer
    store: AudioCodeStore
    plan: InterleavePlan
    max_length: int
    user_audio_loss_weight: float = 0.0
    seed: int = 42

    def __post_init__(self):
        self.plan.check_data()

    def encode(self, sources: Sequence[Source], row: Mapping[str, Any]) -> Document | Problem:
        """Encode a row of the mixture as a document, or return the reason why it is left out.

        Raises: MissingCodesError if an audio file has not been extracted.
        """
        file = sources[row["source"]].file
        problem = partial(Problem, file, row["line"])
        weight = self.user_audio_loss_weight
        try:
            encoded = encode_row(
                row, file, self.tokenizer, store=self.store, plan=self.plan, user_audio_loss_weight=weight
            )
        except SampleError as error:
            return problem("malformed", str(error))
        except (AudioError, OSError) as error:
            return problem("unusable audio", str(error))
        length = len(encoded.input_ids)
        if length > self.max_length:
            return problem("too long", f"{length} tokens, the limit is {self.max_length}")
        input_ids, labels = (np.asarray(ids, dtype=np.int32) for ids in (encoded.input_ids, encoded.labels))
        if (labels == IGNORE_INDEX).all():
            return problem("nothing to learn", "no token has a label; a sample needs an assistant turn")
        weights = np.asarray(encoded.loss_weights, dtype=np.float32) if weight else None
        audios = tuple(
            PackedAudio(str(resolve(span.audio, Path(file).parent).absolute()), span.start + 1, span.num_rows)
            for span in encoded.audio_spans
            if span.num_rows
        )
        return Document(input_ids, labels, weights, audios, row["source"], row["line"])

    def encoder(self, sources: Sequence[Source], rank: int) -> Callable[[Mapping[str, Any]], Document | Problem]:
        return partial(self.encode, sources)

    def encode_all(self, mixture: Mixture, report: PackReport, num_workers: int, progress: bool) -> Iterator[Document]:
        """Yield the documents of a mixture in its order and fill `report`."""
        left_out = {(problem.file, problem.line) for problem in report.problems}
        results = map_ordered(partial(self.encoder, mixture.sources), mixture.rows, num_workers, chunk_size=64)
        for result in tqdm(results, total=len(mixture.rows), desc="packing", unit="sample", disable=not progress):
            if isinstance(result, Document):
                report.num_documents += 1
                report.num_tokens += len(result)
                report.num_targets += int((result.labels != IGNORE_INDEX).sum())
                yield result
            elif (result.file, result.line) not in left_out:
                left_out.add((result.file, result.line))
                report.problems.append(result)

    def write(self, sink: pa.NativeFile | str, num_workers: int, progress: bool) -> PackReport:
        """Write the packs to a file or buffer, as an Arrow stream. Raises: ValueError if no sample is usable."""
        mixture = load_mixture(self.mixture, self.seed)
        report = PackReport(self.max_length, mixture.sources, list(mixture.problems))
        packs = pack_documents(self.encode_all(mixture, report, num_workers, progress), self.max_length)
        with_audio = bool(self.tokenizer.continuous_roles)
        schema = _schema(with_weights=self.user_audio_loss_weight > 0, with_audio=with_audio)
        with pa.ipc.new_stream(sink, schema) as writer:
            while batch := list(islice(packs, _PACKS_PER_WRITE)):
                report.num_packs += len(batch)
                rows = [_join(members, with_audio) for members in batch]
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        if not report.num_packs:
            raise ValueError(f"{self.mixture}: no usable sample\n{report.summary()}")
        return report

    def fingerprint(self) -> str:
        """Return a hash of all inputs: contents of data files, tokenizer, revision of the code store, settings."""
        entries = [
            [entry.name, entry.ratio, entry.num, [[str(file), hash_file(file).hex()] for file in entry.files]]
            for entry in read_entries(self.mixture)
        ]
        codes = [self.store.tokenizer_id, self.store.revision]
        numbers = [self.plan.ratio, self.max_length, self.user_audio_loss_weight, self.seed]
        key = json.dumps([_LAYOUT, entries, self.tokenizer.fingerprint, codes, numbers])
        return hashlib.blake2b(key.encode(), digest_size=12).hexdigest()


def encode_row(
    row: Mapping[str, Any],
    file: str,
    tokenizer: TextTokenizer,
    *,
    store: AudioCodeStore,
    plan: InterleavePlan,
    user_audio_loss_weight: float,
) -> EncodedConversation:
    """Encode a row of a mixture that comes from a data file.

    Continuous input gets one placeholder for each row of the speech encoder's output; the audio is read to count them,
    because headers may be wrong.

    Raises: SampleError, AudioError, FileNotFoundError, MissingCodesError.
    """

    def audio_ids(audio: str, role: str) -> list[int]:
        if not isinstance(audio, str) or "\0" in audio:
            raise SampleError(f"audios must hold file names, got {audio!r}")
        path, how, ids = resolve(audio, Path(file).parent), tokenizer.audio_input[role], []
        if how != DISCRETE:
            num_rows = num_encoder_rows(len(load_audio(path, INPUT_RATE, channel="mean")))
            ids += [tokenizer.context_of_audio_id] * num_rows
        if how != CONTINUOUS:
            ids += tokenizer.audio_ids(store.codes(path))
        return ids

    return encode_conversation(
        json.loads(row["sample"]), tokenizer, audio_ids, plan, user_audio_loss_weight=user_audio_loss_weight
    )


def pack_documents(
    documents: Iterable[Document], max_length: int, num_open: int = NUM_OPEN_PACKS
) -> Iterator[list[Document]]:
    """Group documents, none longer than `max_length`, into packs by best fit with at most `num_open` unfinished packs.

    No document is split. The result depends on the order of the documents.
    """
    unfinished: list[tuple[int, int, list[Document]]] = []  # (free tokens, number of the pack, members), sorted
    for number, document in enumerate(documents):
        fitting = bisect_left(unfinished, (len(document),))
        if fitting < len(unfinished):
            free, pack_number, members = unfinished.pop(fitting)
        else:
            if len(unfinished) == num_open:
                yield unfinished.pop(0)[2]
            free, pack_number, members = max_length, number, []
        members.append(document)
        free -= len(document)
        if free:
            insort(unfinished, (free, pack_number, members))
        else:
            yield members
    yield from (members for _, _, members in sorted(unfinished, key=lambda pack: pack[1]))


def _join(members: list[Document], with_audio: bool) -> dict[str, Any]:
    names = ["input_ids", "labels"] + ["loss_weights"] * (members[0].loss_weights is not None)
    pack = {name: np.concatenate([getattr(member, name) for member in members]) for name in names}
    pack["position_ids"] = np.concatenate([np.arange(len(member), dtype=np.int32) for member in members])
    pack |= {"sources": [member.source for member in members], "lines": [member.line for member in members]}
    if with_audio:
        offsets = np.cumsum([0] + [len(member) for member in members[:-1]]).tolist()
        audios = [(offset, audio) for offset, member in zip(offsets, members, strict=True) for audio in member.audios]
        pack["audio_paths"] = [audio.path for _, audio in audios]
        pack["audio_starts"] = [offset + audio.start for offset, audio in audios]
        pack["audio_rows"] = [audio.num_rows for _, audio in audios]
    return pack


def _schema(with_weights: bool, with_audio: bool) -> pa.Schema:
    columns = {name: pa.list_(pa.int32()) for name in ("input_ids", "labels", "position_ids")}
    columns |= {"sources": pa.list_(pa.int32()), "lines": pa.list_(pa.int64())}
    if with_weights:
        columns["loss_weights"] = pa.list_(pa.float32())
    if with_audio:
        columns |= {"audio_paths": pa.list_(pa.string())}
        columns |= {name: pa.list_(pa.int32()) for name in ("audio_starts", "audio_rows")}
    return pa.schema(columns)


def build_packs(
    mixture: str | Path,
    tokenizer: TextTokenizer,
    store: AudioCodeStore,
    plan: InterleavePlan,
    max_length: int,
    *,
    cache_dir: str | Path | None = None,
    user_audio_loss_weight: float = 0.0,
    seed: int = 42,
    num_workers: int = 0,
    progress: bool = False,
) -> tuple[Dataset, PackReport]:
    """Encode and pack a data yaml; the result depends on its contents and the arguments, not on `num_workers`.

    Args:
        store: Codes of the audio that enters the model as codes, made by tools/extract_audio_codes.py.
        max_length: Maximum number of tokens in a pack; longer samples are left out and reported.
        cache_dir: Folder that caches packs as Arrow files for the same inputs; None: keep them in memory.
        user_audio_loss_weight: If positive, packs have `loss_weights`, and user audio is learnt with this weight.
        seed: Seed for the order of the rows.
        num_workers: Number of encoding processes; 0 encodes in the calling process.
    Returns: Packs with `input_ids`, `labels`, `position_ids` (int32 lists of at most max_length), `sources` and `lines`
        (index in the report's sources, and line, of each document), and the report. With continuous input they also
        have `audio_paths`, `audio_starts` (position of the first placeholder in the pack) and `audio_rows` (number of
        placeholders).
    Raises: FileNotFoundError or ValueError for the yaml and its files, MissingCodesError for audio without codes,
        ValueError if no sample is usable.
    """
    recipe = PackRecipe(Path(mixture), tokenizer, store, plan, max_length, user_audio_loss_weight, seed)
    if cache_dir is None:
        sink = pa.BufferOutputStream()
        report = recipe.write(sink, num_workers, progress)
        return Dataset.from_buffer(sink.getvalue()).with_format("numpy"), report
    folder = Path(cache_dir) / f"packs-{recipe.fingerprint()}"
    if not folder.exists():
        with atomic_folder(folder) as unfinished:
            report = recipe.write(str(unfinished / "packs.arrow"), num_workers, progress)
            write_json(unfinished / "report.json", report.to_json())
    report = PackReport.from_json(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    return Dataset.from_file(str(folder / "packs.arrow")).with_format("numpy"), report
