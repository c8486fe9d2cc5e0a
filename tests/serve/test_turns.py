"""Turn detection does not depend on how the audio arrives, and keeps no more than it must."""

import subprocess
import sys
from pathlib import Path

import pytest
import silero_vad
import soundfile
import torch

from vita_audio.serve.turns import CHUNK, VAD_RATE, SpeechStarted, SpeechStopped, TurnDetector, VadStream, load_vad

SPEECH = Path(__file__).parents[1] / "assets" / "speech_tokenizer" / "vq_wav" / "speech_short.wav"  # at 16 kHz
OPTIONS = {"threshold": 0.5, "prefix_padding_ms": 200, "silence_duration_ms": 400, "max_seconds": 30}


@pytest.fixture(scope="module")
def vad():
    return load_vad()


def speech(seconds):
    return torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0][: int(seconds * VAD_RATE)])


def silence(seconds):
    return torch.zeros(int(seconds * VAD_RATE))


def detect(vad, wave, size=1600, **options):
    detector = TurnDetector(vad, **OPTIONS | options)
    return [event for piece in wave.split(size) for event in detector.push(piece)], detector


TWO_TURNS = torch.cat([silence(0.5), speech(1.5), silence(1), speech(1), silence(1)])


@pytest.mark.parametrize("size", [160, 511, 20_000, len(TWO_TURNS)])
def test_turns_do_not_depend_on_how_audio_arrives(vad, size):
    (expected, _), (events, _) = detect(vad, TWO_TURNS), detect(vad, TWO_TURNS, size)
    assert [type(event) for event in events] == [SpeechStarted, SpeechStopped] * 2
    for event, other in zip(events, expected, strict=True):
        if isinstance(event, SpeechStarted):
            assert event == other
        else:
            assert event.end == other.end and torch.equal(event.wave, other.wave)


def test_streams_share_a_network_and_hear_what_the_package_hears(vad):
    """Two streams in turn, against models of their own."""
    waves = [TWO_TURNS, TWO_TURNS.flip(0)]
    streams, models = [VadStream(vad) for _ in waves], [silero_vad.load_silero_vad() for _ in waves]
    pieces = zip(*(wave.split(CHUNK)[:-1] for wave in waves), strict=True)
    heard = [
        (streams[i](piece, VAD_RATE), models[i](piece, VAD_RATE)) for both in pieces for i, piece in enumerate(both)
    ]
    found, expected = map(torch.cat, zip(*heard, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert expected.max() > 0.9 and expected.min() < 0.1


def test_a_turn_is_its_part_of_the_stream(vad):
    started, stopped, *_ = detect(vad, TWO_TURNS)[0]
    assert 0.3 <= started.start / VAD_RATE <= 0.7 and 1.8 <= stopped.end / VAD_RATE <= 2.4
    assert torch.equal(stopped.wave, TWO_TURNS[started.start : stopped.end])


def test_a_pause_tells_where_the_turn_is_cut_if_it_lasts(vad):
    """It is over when speech goes on, and the turn so far is the turn as it is cut."""
    wave = torch.cat([silence(0.5), speech(1.2), silence(0.3), speech(1.2), silence(0.7)])
    detector, pauses, stopped = TurnDetector(vad, **OPTIONS), [], []
    for piece in wave.split(CHUNK):
        stopped += [event for event in detector.push(piece) if isinstance(event, SpeechStopped)]
        end = detector.pause
        pauses.append((end, None if end is None else detector.turn_until(end).clone()))
    ends = [end for end, _ in pauses]
    changes = [end for before, end in zip(ends, ends[1:], strict=False) if end != before]
    assert len(stopped) == 1 and changes[-2:] == [stopped[0].end, None]
    assert len(changes) >= 4 and all(end is None for end in changes[1::2])  # the shorter pause is one, too
    turns = [turn for end, turn in pauses if end == stopped[0].end]
    assert len(turns) >= 7 and all(torch.equal(turn, stopped[0].wave) for turn in turns)


def test_silence_is_not_kept(vad):
    events, detector = detect(vad, silence(20))
    assert events == [] and len(detector.end_turn()) < 0.3 * VAD_RATE


def test_a_turn_ends_at_its_longest_and_the_next_begins(vad):
    events, _ = detect(vad, torch.cat([silence(0.5), speech(5), silence(1)]), 100_000, max_seconds=2)
    waves = [len(event.wave) for event in events if isinstance(event, SpeechStopped)]
    assert len(waves) == 3 and max(waves) <= 2.1 * VAD_RATE


def test_a_turn_can_be_ended_by_hand(vad):
    events, detector = detect(vad, torch.cat([silence(0.5), speech(1)]))
    assert len(events) == 1 and detector.is_speaking
    wave = detector.end_turn()
    assert torch.equal(wave, torch.cat([silence(0.5), speech(1)])[events[0].start :])
    assert not detector.is_speaking and detector.push(silence(1)) == []


def test_loading_leaves_the_number_of_threads_alone():
    """In a process of its own, since importing silero_vad sets it, once."""
    code = "import torch; torch.set_num_threads(3); from vita_audio.serve.turns import load_vad; load_vad()"
    result = subprocess.run([sys.executable, "-c", f"{code}; print(torch.get_num_threads())"], capture_output=True)
    assert result.stdout.strip() == b"3"
