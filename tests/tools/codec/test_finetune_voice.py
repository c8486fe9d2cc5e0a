"""A decoder learns a voice: the tokenizer stays, the best step is kept, a resumed run equals a straight one."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from audio_tokenizers.tiny_folders import NUM_CODES, make_glm4voice_folders, make_speech_decoder
from toy_corpus import LengthJudge

from tools.codec import finetune_voice, voice_data
from tools.codec.voice_judging import VoiceJudge
from tools.codec.voice_training import Attempts, VoiceFlowTraining, as_old, old_voice_embedding
from tools.common.training_loop import TrainingLoop
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder
from vita_audio.speech_decoder.mel import mel_spectrogram

pytest.importorskip("parselmouth")
RATE = 22_050


class MeanSpectrum:
    """Stands in for Resemblyzer, which the tests' environment need not have: a speaker is a mean spectrum."""

    def embed(self, sound):
        spectrum = mel_spectrogram(sound[0][None])[0].mean(1).exp().numpy()
        return spectrum / np.linalg.norm(spectrum)


@pytest.fixture(scope="module")
def voice(tmp_path_factory):
    """Eight clips of a second: harmonics of a gliding pitch."""
    folder = tmp_path_factory.mktemp("voice")
    rows = []
    for index in range(8):
        time = np.arange(RATE) / RATE
        phase = 2 * np.pi * (150 + 5 * index + 20 * time) * time
        wave = sum(np.sin(order * phase) / order for order in range(1, 9)) * (0.6 + 0.4 * np.sin(9 * time)) * 0.1
        soundfile.write(folder / f"{index}.flac", wave, RATE)
        rows.append({"audio": f"{index}.flac", "text": "beep " * 10, "voice": "me"})
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.manual_seed(0)
    return make_glm4voice_folders(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module", autouse=True)
def short_work():
    """Little speech is enough, and stand-ins judge it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voice_data, "SHORTEST_SECONDS", 5)
        patch.setattr(VoiceJudge, "load", lambda *_: VoiceJudge(LengthJudge(), MeanSpectrum()))
        yield


def flags(voice, folders, output, /, **changes):
    values = {"voice": voice, "tokenizer": folders[0], "decoder": folders[1], "output": output, "device": "cpu"}
    values |= {"steps": 4, "save_every": 2, "warmup": 1, "vocoder_steps": 2, "disguises": 1, "held_out": 1}
    values |= {"frames_per_batch": 300, "batch_size": 2}
    return [part for name, value in (values | changes).items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def straight(voice, folders, tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    finetune_voice.main(flags(voice, folders, run))
    return run


def test_the_result_is_a_decoder_of_the_same_codes_and_its_encoder_is_the_old_one(voice, folders, straight, capsys):
    old, new = (get_audio_tokenizer("glm4voice", folders[0], folder) for folder in (folders[1], straight / "decoder"))
    assert new.fingerprint == old.fingerprint
    before, after = (codec.decoder.flow.state_dict() for codec in (old, new))
    changed = {name.split(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"length_regulator", "decoder", "spk_embed_affine_layer"}
    assert len(new.decode(range(NUM_CODES))) == len(old.decode(range(NUM_CODES)))
    result = json.loads((straight / "voice.json").read_text(encoding="utf-8"))
    assert [row["step"] for row in result["attempts"]] == [0, 2, 4] and result["before"]["step"] == 0
    assert result["best"]["score"] == max(row["score"] for row in result["attempts"][1:])
    finetune_voice.main(flags(voice, folders, straight))
    assert f"{straight} is finished" in capsys.readouterr().out


@pytest.mark.parametrize("stop_at", ["before a step", "while judging"])
def test_a_resumed_run_equals_a_straight_one(voice, folders, straight, tmp_path, stop_at):
    owner, name, last = {"before a step": (TrainingLoop, "_train_step", 5), "while judging": (VoiceJudge, "judge", 2)}[
        stop_at
    ]
    work, calls = getattr(owner, name), []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == last:
            raise KeyboardInterrupt
        return work(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            finetune_voice.main(flags(voice, folders, tmp_path))
    finetune_voice.main(flags(voice, folders, tmp_path))
    results = [json.loads((run / "voice.json").read_text(encoding="utf-8")) for run in (straight, tmp_path)]
    assert results[0] == results[1]
    one, other = (SpeechDecoder.from_pretrained(run / "decoder") for run in (straight, tmp_path))
    torch.testing.assert_close(one.flow.state_dict(), other.flow.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(one.hift.state_dict(), other.hift.state_dict(), rtol=0, atol=0)


def test_the_best_attempt_is_kept_and_patience_ends(tmp_path):
    attempts, decoders = Attempts(tmp_path, patience=2), [make_speech_decoder(NUM_CODES) for _ in range(4)]
    for step, (score, decoder) in enumerate(zip((0.9, 0.6, 0.5, 0.6), decoders, strict=True)):
        assert not attempts.is_done
        attempts.add(step, {"score": score}, decoder)
    again = Attempts(tmp_path, patience=2)
    assert attempts.is_done and again.is_done and not Attempts(tmp_path, patience=3).is_done
    assert [folder.name for folder in tmp_path.glob("step-*")] == ["step-1"] and again.best["step"] == 1
    kept = SpeechDecoder.from_pretrained(again.folder_of(1))
    torch.testing.assert_close(kept.flow.state_dict(), decoders[1].flow.state_dict())


def test_the_old_voice_stays_behind_its_embedding():
    """A loud new voice is learnt from the codes of a quiet old one, which its embedding brings back."""
    torch.manual_seed(0)
    old = make_speech_decoder(NUM_CODES)
    flow, num_frames = old.config.flow, old.flow.num_frames(20)
    model = VoiceFlowTraining(flow, old.flow.state_dict(), seed=0)
    codes = torch.randint(0, NUM_CODES, (4, 20))
    batch = {"codes": codes, "code_lengths": torch.full((4,), 20), "mel_lengths": torch.full((4,), num_frames)}
    batch = {"mel": torch.full((4, num_frames, 80), 2.0), **batch} | as_old(
        {"mel": torch.full((4, num_frames, 80), -2.0), **batch}
    )
    optimizer = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        model(batch)["total"].backward()
        optimizer.step()
    noise = torch.randn(1, 80, num_frames)
    with torch.no_grad():
        new, kept = (
            model.eval().flow.inference(codes[:1], noise, embedding=embedding).mean()
            for embedding in (None, old_voice_embedding(flow)[None])
        )
    assert new > 1 and kept < -1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"voice": "nowhere"}, r"no nowhere/manifest.jsonl; .*prepare_speech.py"),
        ({"speaker": "nobody"}, "no usable utterance of voice nobody"),
        ({"decoder": "nowhere"}, "nowhere"),
        ({"held_out": 0}, "--held-out: must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_one_line(voice, folders, tmp_path, capsys, changes, reason):
    with pytest.raises(SystemExit) as ended:
        finetune_voice.main(flags(voice, folders, tmp_path / "run", **changes))
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("finetune_voice: ") and re.search(reason, line)


@pytest.mark.parametrize(
    ("voices", "reason"),
    [
        (["me"] * 4, "at least 5 s of speech, better five minutes, got 4.0 s in"),
        (["me"] * 4 + ["you"] * 4, r"one speaker, got 2: me \(4 clips\), you \(4 clips\); choose one with --speaker"),
    ],
)
def test_too_little_speech_and_several_speakers_are_refused(voice, folders, tmp_path, capsys, voices, reason):
    rows = [{"audio": str(voice / f"{index}.flac"), "text": "beep", "voice": name} for index, name in enumerate(voices)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(SystemExit):
        finetune_voice.main(flags(tmp_path, folders, tmp_path / "run"))
    assert re.search(reason, capsys.readouterr().err.splitlines()[-1])


def test_another_kind_of_decoder_is_refused(voice, folders, tmp_path, capsys):
    make_speech_decoder(NUM_CODES + 1).save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        finetune_voice.main(flags(voice, folders, tmp_path / "run", decoder=tmp_path / "other"))
    assert f"must know the tokenizer's {NUM_CODES} codes" in capsys.readouterr().err.splitlines()[-1]


def test_an_unfinished_run_is_not_continued_with_other_settings(voice, folders, straight, tmp_path, capsys):
    finetune_voice.main(flags(voice, folders, tmp_path, steps=2))
    (tmp_path / "voice.json").unlink()
    with pytest.raises(SystemExit):
        finetune_voice.main(flags(voice, folders, tmp_path, steps=4))
    assert "made with other settings (steps: 2 before, 4 now)" in capsys.readouterr().err.splitlines()[-1]
