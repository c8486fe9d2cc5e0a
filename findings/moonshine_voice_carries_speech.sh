#!/usr/bin/env bash
# moonshine-voice 0.0.49: a transcript of one wave can begin with a word that belongs to the wave before it.
#
# Expected: `Transcriber.transcribe_without_streaming` takes a whole wave, so each transcript depends on its own wave.
# Seen: the voice activity detector is not reset between calls. After a wave that ends while someone speaks, the next
# transcript begins with a line of about 0.1 s and a made-up word such as "You", even if the next wave is silent. The
# silent wave has no line before that, or when it is transcribed again. As an error rate, it is an inserted word in
# every clip that follows a tightly cut one. With half a second of silence after each wave, the detector comes to rest.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder" moonshine-voice==0.0.49 \
    2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }
PYTHONPATH=$folder python3 - <<'PYTHON'
import wave
from pathlib import Path

import moonshine_voice
import numpy as np

with wave.open(str(Path(moonshine_voice.__file__).parent / "assets" / "beckett.wav")) as file:
    rate = file.getframerate()
    samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    speech = samples.reshape(-1, file.getnchannels())[:, 0] / 32768
speech = speech[: 3 * rate]  # cut without a pause at its end
silence = np.zeros(rate)
transcriber = moonshine_voice.Transcriber(
    str(moonshine_voice.get_model_path("tiny-en")), moonshine_voice.ModelArch.TINY
)


def lines(samples: np.ndarray) -> list[tuple[str, float]]:
    transcript = transcriber.transcribe_without_streaming(samples.tolist(), rate)
    return [(line.text, round(line.duration, 2)) for line in transcript.lines]


before = lines(silence)
spoken = lines(speech)
after, again = lines(silence), lines(silence)
lines(np.concatenate([speech, np.zeros(rate // 2)]))
rested = lines(silence)
print(f"silence first: {before}\nspeech: {spoken}\nsilence after it: {after}\nonce more: {again}")
print(f"silence after speech with half a second of silence at its end: {rested}")
if before or again or rested or len(after) != 1 or after[0][1] > 0.2:
    raise SystemExit("changed: the line in the silence after speech")
PYTHON
