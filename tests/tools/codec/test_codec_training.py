"""The codec's training tools on seconds of synthetic tones: they train, resume and export folders that load."""

import argparse
import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from tools.codec import decoder_training, tokenizer_training, train_decoder, train_tokenizer
from tools.codec.corpus import Utterance
from tools.common.training_loop import averaged_weights
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.audio_tokenizers.glm4voice import EMBEDDED_TOKENIZER
from vita_audio.audio_tokenizers.whisper_vq import WhisperVQEncoder
from vita_audio.speech_decoder.config import EncoderConfig, EstimatorConfig
from vita_audio.speech_decoder.glm4voice.decoder import SpeechDecoder

RATE = 22050
EMBEDDED_DECODER = Path(decoder_training.vita_audio.__file__).parent / "assets" / "speech_decoder"
TINY_TOKENIZER = {"width": 32, "ffn": 32, "layers": 1, "codes": 16, "batch_seconds": 1}
TINY_FLOW = replace(
    decoder_training.SMALL_FLOW,
    input_size=16,
    encoder=EncoderConfig(input_size=16, output_size=16, attention_heads=2, linear_units=16, num_blocks=1),
    estimator=EstimatorConfig(channels=(16, 16), n_blocks=0, num_mid_blocks=1),
)
TINY_HIFT = replace(decoder_training.SMALL_HIFT, base_channels=16, f0_channels=16)
PARTS = (decoder_training.MaskedDiffWithXvec, decoder_training.HiFTGenerator)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Twelve clips of voiced noise in one voice, six in another."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(18):
        time = np.arange(int(1.2 * RATE)) / RATE
        wave = sum(np.sin(2 * np.pi * (110 + 3 * index) * h * time) / h for h in range(1, 9)) * 0.1
        soundfile.write(folder / f"{index}.flac", wave + 0.003 * rng.standard_normal(len(time)), RATE)
        voice = "main" if index < 12 else "other"
        rows.append({"audio": f"{index}.flac", "text": "one two", "phones": list("wʌn tuː"), "voice": voice})
    (folder / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return folder


def flags(corpus: Path, output: Path, /, **changes) -> list[str]:
    values = {"corpus": corpus, "voice": "main", "output": output, "device": "cpu", "warmup": 1, "held_out": 2}
    return [part for name, value in (values | changes).items() for part in (f"--{name.replace('_', '-')}", str(value))]


def make_tokenizer(corpus: Path, output: Path, **changes) -> Path:
    train_tokenizer.main(flags(corpus, output, **(TINY_TOKENIZER | changes)))
    return output / "tokenizer"


@pytest.fixture(scope="module", autouse=True)
def short_work():
    """Few batches for the first codebook, and a decoder of few channels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_training, "CODEBOOK_START_BATCHES", 3)
        patch.setattr(decoder_training, "SMALL_FLOW", TINY_FLOW)
        patch.setattr(decoder_training, "SMALL_HIFT", TINY_HIFT)
        yield


@pytest.fixture(scope="module")
def tokenizer(corpus, tmp_path_factory) -> Path:
    """A run stopped before it had a codebook, and continued."""
    run = tmp_path_factory.mktemp("tokenizer")

    def stop(*arguments):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_training, "validate", stop)
        with pytest.raises(KeyboardInterrupt):
            make_tokenizer(corpus, run, steps=9, quantize_from=8, save_every=2)
    return make_tokenizer(corpus, run, steps=4, quantize_from=1)


def test_a_codebook_is_started_also_if_the_run_is_past_its_step(tokenizer):
    state = torch.load(tokenizer.parent / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4 and state["model"]["quantizer.initialized"]
    (figures,) = [json.loads(line) for line in (tokenizer.parent / "log.jsonl").read_text().splitlines()]
    assert figures["step"] == 4 and {"phone_error_main", "phone_error_other", "perplexity", "mel"} <= figures.keys()
    exported = get_audio_tokenizer("glm4voice", tokenizer)
    assert exported.encoder.codebook.weight == pytest.approx(state["model"]["quantizer.codebook.weight"], abs=1e-2)


def test_the_default_front_end_is_that_of_the_embedded_tokenizer(tokenizer):
    ours, embedded = (
        json.loads((folder / "preprocessor_config.json").read_text()) for folder in (tokenizer, EMBEDDED_TOKENIZER)
    )
    assert ours == embedded


@pytest.mark.parametrize(
    "changes",
    [{"heads": 2}, {"layers": 2, "code_layers": 0}, {"voice": "other"}, {"start_from": EMBEDDED_TOKENIZER}],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_is_not_resumed_with_settings_that_weights_do_not_show(corpus, tokenizer, capsys, changes):
    with pytest.raises(SystemExit):
        make_tokenizer(corpus, tokenizer.parent, steps=4, quantize_from=1, **changes)
    line = capsys.readouterr().err.splitlines()[-1]
    for name, value in changes.items():
        assert "was made with other settings" in line and f"{name}: " in line and f"{value} now" in line


def test_a_run_without_settings_is_resumed_without_its_start_and_gets_them(corpus, tokenizer, tmp_path):
    run = shutil.copytree(tokenizer.parent, tmp_path / "run")
    (run / "settings.json").unlink()
    make_tokenizer(corpus, run, steps=5, quantize_from=1, start_from=tmp_path / "gone")
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 5
    settings = json.loads((run / "settings.json").read_text())
    assert settings["start_from"] == str(tmp_path / "gone") and settings["heads"] == "4"


def test_the_codebook_starts_from_several_vectors_per_code(corpus, tmp_path, monkeypatch):
    counts, initialize = [], tokenizer_training.VectorQuantizer.initialize

    def counting(quantizer, vectors):
        counts.append(len(vectors))
        initialize(quantizer, vectors)

    monkeypatch.setattr(tokenizer_training.VectorQuantizer, "initialize", counting)
    make_tokenizer(corpus, tmp_path, steps=2, quantize_from=1, codes=48)
    assert counts[0] >= 9 * 48


def tone(seconds: float, rate: int, voice: str = "main") -> Utterance:
    wave = 8000 * np.sin(2 * np.pi * 300 / rate * np.arange(round(seconds * rate)))
    return Utterance(wave.astype(np.int16), rate, "a", voice, ["a"])


def test_recordings_of_all_rates_have_features_and_mels_of_their_length():
    maker = tokenizer_training.BatchMaker(WhisperFeatureExtractor(), {"a": 1}, "main", "cpu")
    pieces = [[tone(1.0, 16000)], [tone(0.8, 16000), tone(0.8, RATE)], [tone(1.0, RATE, "other")]]
    batch = maker(pieces, None)
    assert batch["mask"].sum(1).tolist() == [100, 160, 100] and batch["symbols"] == [[1], [1, 1], [1]]
    assert [mel if mel is None else len(mel) for mel in batch["mels"]] == [22050 // 256, 35280 // 256, None]
    (expected,) = maker([[tone(1.0, RATE)]], None)["mels"]
    assert (batch["mels"][0] - expected)[5:-5].abs().mean() < 0.1


def test_pieces_fit_into_the_features_at_any_speed():
    sampler = tokenizer_training.PieceSampler([tone(1.0, 8000)], 1.0, random.Random(0))
    pieces = [piece for _ in range(60) for piece in sampler.batch()]
    longest = max(sum(utterance.seconds for utterance in piece) for piece in pieces)
    assert 20 < longest <= 0.9 * WhisperFeatureExtractor().chunk_length


def test_a_codebook_that_would_never_start_is_refused(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit):
        make_tokenizer(corpus, tmp_path, steps=2, quantize_from=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.match("train_tokenizer: --quantize-from 2 must leave .* --steps 2", line)
    assert not (tmp_path / "tokenizer").exists()


def test_a_trained_encoder_gets_another_codebook_and_its_decoder_follows(corpus, tokenizer, tmp_path, capsys):
    changes = {"steps": 2, "quantize_from": 1, "lr": 1e-9, "codes": 8, "start_from": tokenizer}
    other = make_tokenizer(corpus, tmp_path / "other", **changes)
    before, after = (get_audio_tokenizer("glm4voice", folder).encoder.state_dict() for folder in (tokenizer, other))
    assert after["codebook.weight"].shape == (8, 32)
    for name in before.keys() - {"codebook.weight", "ema_count", "ema_weight"}:
        assert after[name] == pytest.approx(before[name].float().numpy(), abs=1e-3), name

    config = decoder_training.DecoderConfig(flow=replace(TINY_FLOW, vocab_size=16), hift=TINY_HIFT)
    decoder = SpeechDecoder(config, *(part(size) for part, size in zip(PARTS, (config.flow, config.hift), strict=True)))
    decoder.save_pretrained(tmp_path / "decoder")
    more = {"tokenizer": other, "joined": 0, "disguised": 0, "steps": 1, "lr": 1e-9, "start_from": tmp_path / "decoder"}
    with pytest.raises(SystemExit):
        train_decoder.main(["flow", *flags(corpus, tmp_path / "flow", **more, start_tokenizer=other)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert "decoder has 16 codes" in line and "give its tokenizer as --start-tokenizer" in line
    train_decoder.main(["flow", *flags(corpus, tmp_path / "flow", **more, start_tokenizer=tokenizer)])
    weights, start = averaged_weights(tmp_path / "flow", "flow"), decoder.flow.state_dict()
    assert weights["input_embedding.weight"].shape == (8, 16)
    for name in start.keys() - {"input_embedding.weight"}:
        assert weights[name] == pytest.approx(start[name].numpy(), abs=1e-6), name


def encoder_of(layers: int, **changes) -> WhisperVQEncoder:
    values = TINY_TOKENIZER | {"layers": layers, "mel_bins": 80, "heads": 4, "code_layers": 1} | changes
    return WhisperVQEncoder(tokenizer_training.encoder_config(argparse.Namespace(**values))).eval()


def test_new_layers_of_a_trained_encoder_change_nothing_at_first(tokenizer):
    deeper, start = encoder_of(3), WhisperVQEncoder.from_pretrained(tokenizer).float().eval()
    tokenizer_training.load_encoder(deeper, tokenizer)
    features, mask = torch.randn(2, 80, 96, generator=torch.Generator().manual_seed(0)), torch.ones(2, 96, dtype=bool)
    with torch.no_grad():
        after, before = (encoder(features, mask).pre_vq_hidden for encoder in (deeper, start))
    torch.testing.assert_close(after, before)


@pytest.fixture(scope="module")
def deep_start(tmp_path_factory) -> Path:
    """An encoder of 3 + 1 layers that pools maxima."""
    encoder, folder = encoder_of(3), tmp_path_factory.mktemp("deep")
    encoder.config.pooling_type = "max"
    encoder.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layers": 2}, "--layers must be at least 3, got 2"),
        ({"code_layers": 0}, "--code-layers must be 1, got 0"),
        ({"heads": 2}, "--heads must be 4, got 2"),
        ({"width": 64, "ffn": 48}, "--width must be 32, got 64; --ffn must be 32, got 48"),
        ({}, "pooling_type must be max, got avg"),
    ],
)
def test_an_encoder_of_other_settings_is_no_start(deep_start, changes, reason):
    with pytest.raises(ValueError) as error:
        tokenizer_training.load_encoder(encoder_of(**({"layers": 3} | changes)), deep_start)
    for part in reason.split("; "):
        assert part in str(error.value)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory) -> Path:
    """A Whisper model with random weights, of which feed-forward units 3, 7 and 11 do nothing."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "encoder_layers": 2, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "vocab_size": 8}
    special_tokens = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(**sizes, **special_tokens, decoder_layers=1, decoder_ffn_dim=16, decoder_attention_heads=2)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        for layer in model.model.encoder.layers:
            layer.fc2.weight[:, [3, 7, 11]] = 0
    folder = tmp_path_factory.mktemp("whisper")
    model.save_pretrained(folder)
    return folder


def test_an_encoder_starts_as_that_of_whisper(whisper, capsys):
    encoder = encoder_of(2, heads=2, code_layers=0, ffn=13)
    tokenizer_training.load_encoder(encoder, whisper)
    assert "--ffn keeps 13 of the 16 units" in capsys.readouterr().out
    start = WhisperForConditionalGeneration.from_pretrained(whisper).model.encoder.eval()
    for ours, theirs in ((encoder.conv1, start.conv1), (encoder.conv2, start.conv2)):
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(encoder.embed_positions.weight, start.embed_positions.weight)
    hidden = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(encoder.layers, start.layers, strict=True):
        with torch.no_grad():
            torch.testing.assert_close(ours(hidden, None), theirs(hidden, None))


def test_a_whisper_of_other_sizes_is_no_start(whisper):
    for changes, reason in (
        ({"heads": 4, "ffn": 16}, "--heads must be 2, got 4"),
        ({"mel_bins": 128, "ffn": 16}, "--mel-bins must be 80, got 128"),
        ({"layers": 2, "ffn": 16}, "--layers plus --code-layers must be at most 2, got 3"),
        ({"width": 64, "ffn": 17}, "--width must be 32, got 64; --ffn must be at most 16, got 17"),
    ):
        with pytest.raises(ValueError) as error:
            tokenizer_training.load_encoder(encoder_of(**({"layers": 1, "heads": 2} | changes)), whisper)
        assert str(error.value) == f"--start-from {whisper}: {reason}"


def test_a_whisper_may_store_the_head_of_its_decoder(whisper, tmp_path):
    folder = shutil.copytree(whisper, tmp_path / "whisper")
    weights = load_file(folder / "model.safetensors")
    weights["proj_out.weight"] = weights["model.decoder.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tokenizer_training.load_encoder(encoder_of(1, heads=2, ffn=16), folder)


def test_a_tokenizer_started_from_whisper_trains(corpus, whisper, tmp_path):
    sizes = {"heads": 2, "layers": 2, "code_layers": 0, "ffn": 16, "speech_level": 0}
    folder = make_tokenizer(corpus, tmp_path, steps=2, quantize_from=1, start_from=whisper, **sizes)
    assert "speech_level" not in json.loads((folder / "preprocessor_config.json").read_text())
    assert len(get_audio_tokenizer("glm4voice", folder).encode(torch.zeros(16000), 16000)) == 13


def test_a_decoder_trains_and_decodes(corpus, tokenizer, tmp_path, capsys):
    pytest.importorskip("parselmouth")
    run = train_decoder.main
    run(["vocoder", *flags(corpus, tmp_path / "vocoder", steps=2, batch_size=2, frames=30)])
    run(["reader", *flags(corpus, tmp_path / "reader", steps=2, frames_per_batch=200)])
    more = {"tokenizer": tokenizer, "joined": 1, "disguised": 1, "frames_per_batch": 200, "prior_steps": 1}
    more |= {"reader": tmp_path / "reader", "shifted": 2}
    run(["flow", *flags(corpus, tmp_path / "flow", steps=2, **more)])
    run(["flow", *flags(corpus, tmp_path / "flow", steps=3, **more)])
    other = get_audio_tokenizer("glm4voice", tokenizer)
    other.encoder.codebook.weight += 1
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(SystemExit):
        run(["flow", *flags(corpus, tmp_path / "flow", steps=4, **more | {"tokenizer": tmp_path / "other"})])
    assert "was made with other settings (tokenizer: " in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "flow" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 3]
    assert {"flow_loss", "phone_ctc", "held_out_flow_loss", "held_out_phone_features"} <= log[-1].keys()
    folders = ("--vocoder", tmp_path / "vocoder", "--flow", tmp_path / "flow", "--output", tmp_path / "decoder")
    run(["export", *map(str, folders)])

    folders = ("--vocoder", tmp_path / "decoder", "--flow", tmp_path / "flow", "--output", tmp_path / "kept")
    run(["export", *map(str, folders)])
    for name in ("flow.safetensors", "hift.safetensors"):
        assert (tmp_path / "kept" / name).read_bytes() == (tmp_path / "decoder" / name).read_bytes()
    for vocoder, reason in (("none", "config.yaml is missing"), ("reader", "must be a run that trained a hift")):
        with pytest.raises(SystemExit):
            run(["export", "--vocoder", str(tmp_path / vocoder), *map(str, folders[2:])])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"train_decoder: {tmp_path / vocoder}") and reason in error

    start = {"start_from": tmp_path / "decoder", "start_tokenizer": tokenizer}
    run(["flow", *flags(corpus, tmp_path / "again", steps=1, lr=1e-9, **start, **more)])
    before = SpeechDecoder.from_pretrained(tmp_path / "decoder").flow.state_dict()
    for name, value in averaged_weights(tmp_path / "again", "flow").items():
        assert value == pytest.approx(before[name].numpy(), abs=1e-6), name

    further = {"steps": 1, "lr": 1e-9, "batch_size": 2, "frames": 30, "start_from": tmp_path / "decoder"}
    run(["vocoder", *flags(corpus, tmp_path / "further", **further)])
    before = SpeechDecoder.from_pretrained(tmp_path / "decoder").hift.state_dict()
    for name, value in averaged_weights(tmp_path / "further", "hift").items():
        assert value == pytest.approx(before[name].numpy(), abs=1e-6), name

    codec = get_audio_tokenizer("glm4voice", tokenizer, tmp_path / "decoder")
    codec.speech_level = None  # the wave as it is
    wave, rate = soundfile.read(corpus / "0.flac", dtype="float32")
    codes = codec.encode(torch.from_numpy(wave), rate)
    assert len(codes) == 15  # 1.2 s at 12.5 codes per second
    assert abs(len(codec.decode(codes)) - len(wave)) < 256 * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"held_out": 0}, "--held-out must be 1 or more, got 0"),
        ({"held_out": 7}, "--held-out 7 needs at least 14 utterances, got 12; lower it"),
        ({"frames": 200}, "--frames 200 needs recordings longer than 2.32 s, got none; lower it"),
        ({"voice": "nobody"}, "gives no usable utterance of voice nobody"),
        ({"corpus": "nowhere"}, "no nowhere/manifest.jsonl; make one with"),
        ({"start_from": EMBEDDED_DECODER, "frames": 30}, "must have the sizes of the embedded vocoder"),
    ],
)
def test_wrong_input_is_one_line(corpus, tmp_path, capsys, changes, reason):
    with pytest.raises(SystemExit) as exit:
        train_decoder.main(["vocoder", *flags(corpus, tmp_path, **changes)])
    line = capsys.readouterr().err.splitlines()[-1]
    assert exit.value.code == 2 and line.startswith("train_decoder: ") and reason in line


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mel_bins": 12}, "--mel-bins: must be at least 13, got 12"),
        ({"batch_seconds": 0}, "--batch-seconds: must be above 0, got 0"),
        ({"width": 2}, "--width: must be at least 4, got 2"),
        ({"speech_level": -1}, "--speech-level: must be at least 0, got -1"),
        ({"voice": "nobody"}, "--voice must be one of main, other, got nobody"),
    ],
)
def test_wrong_input_of_the_tokenizer_is_one_line(corpus, tmp_path, capsys, changes, reason):
    with pytest.raises(SystemExit):
        make_tokenizer(corpus, tmp_path, steps=2, quantize_from=1, **changes)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("train_tokenizer: ") and reason in line


def test_recordings_longer_than_a_piece_are_named(corpus, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tokenizer_training, "MAX_PIECE_SECONDS", 1.0)
    with pytest.raises(SystemExit):
        make_tokenizer(corpus, tmp_path, steps=2, quantize_from=1)
    assert "0.flac: audio must be at most 1 s, got 1.2 s; split it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"steps": 6000}, "--prior-steps 6000 must leave steps for the UNet, got --steps 6000"),
        ({"start_from": EMBEDDED_DECODER}, "--start-from needs the tokenizer of its codes as --start-tokenizer"),
        ({"voice": "nobody"}, "--voice must be one of main, other, got nobody"),
    ],
)
def test_wrong_input_of_the_flow_is_one_line(corpus, tmp_path, capsys, changes, reason):
    with pytest.raises(SystemExit):
        train_decoder.main(["flow", *flags(corpus, tmp_path, tokenizer="nowhere", **changes)])
    assert reason in capsys.readouterr().err.splitlines()[-1]
