"""Cut recordings into clips, measure each and compare its transcript with what a recogniser hears."""

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from torch import Tensor

from evaluation.judges import Judge
from evaluation.metrics.ours import error_counts, scored_tokens
from tools.common.native_messages import named_messages, read_with_name
from tools.corpora.alignment import share_transcript
from tools.corpora.clip_store import Clip, ClipStore
from tools.corpora.entries import MAX_TEXT_LENGTH, Entry, text_problem
from tools.corpora.measures import measure_sound
from tools.corpora.voice_activity import Splitting, speech_probabilities, speech_stretches
from vita_audio.data.audio import AudioError, audio_blocks, audio_info, load_audio
from vita_audio.data.mixture import Problem

LONGEST_CLIP_SECONDS = 120.0  # longer ones are not read
LONGEST_UTTERANCE_SECONDS = 30.0  # longer recordings with a transcript are split; Whisper hears as much at a time
MOST_CHARACTERS_PER_SECOND = 100.0  # more are a list with a missing quote
LEAST_TRIM_SECONDS = 0.3  # less silence is left at the ends of a recording
BATCH_CLIPS, BATCH_SECONDS = 32, 120.0  # measured between two commits: the most that an interruption loses


class UnusableError(Exception):
    """A recording that cannot be used, with kind and reason."""


@dataclass(frozen=True)
class Cutter:
    """Cuts recordings into clips.

    Attributes:
        vad: Silero VAD, or None: every recording is one clip.
    """

    vad: Any | None
    splitting: Splitting = field(default_factory=Splitting)

    def clips(self, entry: Entry, *, align: bool) -> Iterator[tuple[str, str | None]]:
        """Yield the audio and the transcript of each clip.

        A recording with a transcript is one clip, without the silence at its ends. A long one is split like one without
        if its transcript can be aligned; the clips then come without theirs.

        Raises: UnusableError, AudioError, OSError.
        """
        with named_messages(str(entry.audio)):
            info = audio_info(str(entry.audio))
        longest_text = max(MAX_TEXT_LENGTH, round(MOST_CHARACTERS_PER_SECOND * info.seconds))
        if reason := text_problem(" ".join(filter(None, (entry.text, entry.speaker, entry.recording))), longest_text):
            raise UnusableError("unusable transcript", reason)
        if self.vad is None:
            stretches = [(0.0, info.seconds)]
        else:
            blocks = read_with_name(str(entry.audio), audio_blocks(str(entry.audio)))
            probabilities = speech_probabilities(self.vad, blocks, info.sample_rate)
            stretches = speech_stretches(probabilities, info.seconds, self.splitting)
            if not stretches:
                raise UnusableError("no speech", f"{entry.audio}: no speech in {info.seconds:.2f} s")
        first, last = stretches[0][0], stretches[-1][1]
        if entry.text and not (align and last - first > LONGEST_UTTERANCE_SECONDS):
            stretches = [(first, last)]
        begin = entry.audio.seconds[0] if entry.audio.seconds else 0.0
        for start, end in stretches:
            if end - start > LONGEST_CLIP_SECONDS:
                reason = f"{entry.audio}: one clip of {end - start:.0f} s, at most {LONGEST_CLIP_SECONDS:.0f}"
                remedy = "it is split without --no-split and, as it has a transcript, with --asr"
                raise UnusableError("too long", f"{reason}; {remedy}" if entry.text else reason)
            is_whole = start + info.seconds - end < LEAST_TRIM_SECONDS and len(stretches) == 1
            audio = entry.audio if is_whole else replace(entry.audio, seconds=(begin + start, begin + end))
            yield str(audio), entry.text if len(stretches) == 1 else None


@dataclass
class Batch:
    """Clips that are not yet measured, and the recordings that end with them."""

    clips: list[tuple[Entry, str, Tensor, int]] = field(default_factory=list)
    finished: list[Entry] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, entry: Entry, audio: str) -> None:
        """Read a clip. Raises: AudioError, OSError."""
        with named_messages(str(entry.audio)):
            rate = audio_info(audio).sample_rate
            wave = load_audio(audio, rate)
        self.clips.append((entry, audio, wave, rate))
        self.seconds += len(wave) / rate

    @property
    def is_full(self) -> bool:
        return len(self.clips) >= BATCH_CLIPS or self.seconds >= BATCH_SECONDS


def measure_corpus(
    found: Iterable[Entry | Problem], store: ClipStore, cutter: Cutter, judge: Judge | None, language: str = "en"
) -> None:
    """Measure the recordings that are not yet in the store, and write down those that cannot be used.

    Args:
        judge: Transcribes every clip; None: transcripts are not compared with anything.
        language: Language whose rules say which words are equal.
    """
    batch = Batch()
    for item in found:
        if isinstance(item, Problem):
            store.add_problem(item)
            continue
        try:
            if not store.begin(item):
                continue
        except (OSError, UnicodeEncodeError) as error:  # no such file, or a name that is not UTF-8
            store.add_problem(Problem(item.file, item.line, "unusable audio", str(error)))
            continue
        try:
            for audio, text in cutter.clips(item, align=judge is not None):
                if not store.has(audio):
                    batch.add(replace(item, text=text), audio)
                if batch.is_full:
                    _measure(batch, store, judge, language)
                    batch = Batch()
        except (UnusableError, AudioError, OSError) as error:
            kind = error.args if isinstance(error, UnusableError) else ("unusable audio", str(error))
            store.add_problem(Problem(item.file, item.line, *kind), item)
            item = replace(item, text=None)  # its transcript is not that of the clips before the error
        batch.finished.append(item)
    _measure(batch, store, judge, language)


def _measure(batch: Batch, store: ClipStore, judge: Judge | None, language: str) -> None:
    """Measure the clips of a batch and commit the results."""
    sounds = [(wave, rate) for _, _, wave, rate in batch.clips]
    texts = judge.transcribe(sounds) if judge else [None] * len(sounds)
    store.add_clips(_clip(*clip, heard, language) for clip, heard in zip(batch.clips, texts, strict=True))
    for entry in batch.finished:
        if entry.text:
            _align(entry, store, language)
        store.finish(entry)
    store.commit()


def _align(entry: Entry, store: ClipStore, language: str) -> None:
    """Share the transcript of a recording among its clips if there are several."""
    numbers, heard = store.heard_in(entry)
    if len(numbers) > 1:
        for number, text, said in zip(numbers, share_transcript(entry.text, heard), heard, strict=True):
            store.set_text(number, text, *error_counts(text, said, language))


def _clip(entry: Entry, audio: str, wave: Tensor, rate: int, heard: str | None, language: str) -> Clip:
    text = entry.text or None
    if text and heard is not None:
        errors, words = error_counts(text, heard, language)
    else:
        errors, words = 0, len(scored_tokens(text or heard or "", language))
    return Clip(
        str(entry.audio),
        audio,
        entry.speaker or "",
        entry.recording or str(replace(entry.audio, seconds=None)),
        text,
        heard,
        errors,
        words,
        *astuple(measure_sound(wave.numpy(), rate)),
        listed=f"{entry.file}:{entry.line}" if entry.line else entry.file,
    )
