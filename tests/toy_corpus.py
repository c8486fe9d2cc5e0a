"""A demo corpus with tones instead of speech, a judge that measures instead of transcribing, and flags to use both."""

import json
from pathlib import Path

import numpy as np
import soundfile
import yaml

from evaluation.judges import Judge

RATE = 22_050
SENTENCES = ("one two", "three four five", "the dog sleeps")
QUESTIONS = (("what is the capital of france", "the capital of france is paris", "paris"),)


class LengthJudge(Judge):
    """Hears one word per tenth of a second."""

    name = "length"
    sample_rate = 16_000

    def _transcribe_all(self, waves):
        for wave in waves:
            yield " ".join(["beep"] * round(10 * len(wave) / self.sample_rate))


def make_toy_corpus(folder: Path) -> Path:
    def speak(name: str, seconds: float) -> str:
        path = folder / "audio" / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * np.sin(np.arange(int(seconds * RATE)) * 0.05), RATE)
        return f"audio/{name}.flac"

    heard = [(text, speak(f"heldout{index}", 0.4 + 0.1 * index)) for index, text in enumerate(SENTENCES)]
    rows = {
        "asr": [
            {"id": f"asr-{index}", "task": "asr", "audio": path, "reference": text}
            for index, (text, path) in enumerate(heard)
        ],
        "tts": [
            {"id": f"tts-{index}", "task": "tts", "text": text, "audio": path, "reference": text}
            for index, (text, path) in enumerate(heard)
        ],
        "qa": [
            {
                "id": f"qa-{index}-{unseen}",
                "task": "qa",
                "audio": speak(f"question{index}{unseen}", 0.5),
                "text": question,
                "reference": answer,
                "keyword": keyword,
                "unseen": unseen,
            }
            for unseen in ("rendering", "phrasing")
            for index, (question, answer, keyword) in enumerate(QUESTIONS)
        ],
    }
    for task, items in rows.items():
        (folder / f"heldout_{task}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    training = [
        {"role": "user", "content": "Convert the speech to text.\n<|audio|>"},
        {"role": "assistant", "content": "one"},
    ]
    (folder / "asr.jsonl").write_text(json.dumps({"messages": training, "audios": [speak("train", 1.0)]}) + "\n")
    (folder / "stage1.yaml").write_text(yaml.safe_dump({"dataset": {"asr": {"data_paths": ["asr.jsonl"]}}}))
    return folder


def arguments(toy_folders, corpus: Path, output: Path, *more: str, suite: str = "demo", judge: str = "length"):
    """Return flags of `evaluation.run`, for a judge that a test has put into `JUDGES`."""
    options = {
        "suite": suite,
        "model": toy_folders.model,
        "corpus": corpus,
        "output": output,
        "audio-tokenizer-path": toy_folders.audio_tokenizer,
        "audio-decoder-path": toy_folders.audio_decoder,
        "judge": f"en={judge}",
        "batch-size": 2,
        "max-new-tokens": 24,
    }
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)] + list(map(str, more))
