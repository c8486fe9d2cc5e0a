"""The codec's training tools on seconds of synthetic tones: they train, resume and export folders that load."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tools.codec import decoder_training, tokenizer_training, train_decoder, train_tokenizer
from tools.common.training_loop import averaged_weights
from vita_audio.audio_tokenizers import get_audio_tokenizer
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
        train_decoder.main(["flow", *flags(corpus, tmp_path / "flow", **more)])
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


def test_an_encoder_of_other_sizes_is_no_start(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="must have the sizes in the options"):
        tokenizer_training.load_encoder(encoder_of(1, width=64), tokenizer)
    encoder_of(3).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="--layers must be at least 3"):
        tokenizer_training.load_encoder(encoder_of(1), tmp_path)
    with pytest.raises(ValueError, match="--code-layers must be 1"):
        tokenizer_training.load_encoder(encoder_of(3, code_layers=0), tmp_path)


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


def test_an_encoder_starts_as_that_of_whisper(whisper):
    encoder = encoder_of(2, heads=2, code_layers=0, ffn=13)
    tokenizer_training.load_encoder(encoder, whisper)
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
        ({}, "--heads must be 2"),
        ({"heads": 2, "mel_bins": 128}, "--mel-bins must be 80"),
        ({"heads": 2, "layers": 2}, "must be 2 at most together"),
        ({"heads": 2, "width": 64}, "must have the sizes in the options"),
    ):
        with pytest.raises(ValueError, match=reason):
            tokenizer_training.load_encoder(encoder_of(**({"layers": 1} | changes)), whisper)


def test_a_tokenizer_started_from_whisper_trains(corpus, whisper, tmp_path):
    sizes = {"heads": 2, "layers": 2, "code_layers": 0, "ffn": 16}
    folder = make_tokenizer(corpus, tmp_path, steps=2, quantize_from=1, start_from=whisper, **sizes)
    assert len(get_audio_tokenizer("glm4voice", folder).encode(torch.zeros(16000), 16000)) == 13


def test_an_embedding_of_other_codes_is_the_mean_of_those_at_the_same_places():
    embedding = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    former, codes = [[0, 1, 2], [3]], [[1, 1, 0], [1]]
    translated = decoder_training.translate_embedding(embedding, former, codes, 3)
    expected = torch.stack((embedding[2], (embedding[0] + embedding[1] + embedding[3]) / 3, embedding.mean(0)))
    torch.testing.assert_close(translated, expected)


def test_a_decoder_trains_and_decodes(corpus, tokenizer, tmp_path):
    pytest.importorskip("parselmouth")
    run = train_decoder.main
    run(["vocoder", *flags(corpus, tmp_path / "vocoder", steps=2, batch_size=2, frames=30)])
    run(["reader", *flags(corpus, tmp_path / "reader", steps=2, frames_per_batch=200)])
    more = {"tokenizer": tokenizer, "joined": 1, "disguised": 1, "frames_per_batch": 200, "prior_steps": 1}
    more |= {"reader": tmp_path / "reader", "shifted": 2}
    run(["flow", *flags(corpus, tmp_path / "flow", steps=2, **more)])
    run(["flow", *flags(corpus, tmp_path / "flow", steps=3, **more)])
    log = [json.loads(line) for line in (tmp_path / "flow" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [2, 3]
    assert {"flow_loss", "phone_ctc", "held_out_flow_loss", "held_out_phone_features"} <= log[-1].keys()
    folders = ("--vocoder", tmp_path / "vocoder", "--flow", tmp_path / "flow", "--output", tmp_path / "decoder")
    run(["export", *map(str, folders)])

    again = flags(corpus, tmp_path / "again", steps=1, lr=1e-9, start_from=tmp_path / "decoder", **more)
    run(["flow", *again])
    before = SpeechDecoder.from_pretrained(tmp_path / "decoder").flow.state_dict()
    for name, value in averaged_weights(tmp_path / "again", "flow").items():
        assert value == pytest.approx(before[name].numpy(), abs=1e-6), name

    further = {"steps": 1, "lr": 1e-9, "batch_size": 2, "frames": 30, "start_from": tmp_path / "decoder"}
    run(["vocoder", *flags(corpus, tmp_path / "further", **further)])
    before = SpeechDecoder.from_pretrained(tmp_path / "decoder").hift.state_dict()
    for name, value in averaged_weights(tmp_path / "further", "hift").items():
        assert value == pytest.approx(before[name].numpy(), abs=1e-6), name

    codec = get_audio_tokenizer("glm4voice", tokenizer, tmp_path / "decoder")
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
