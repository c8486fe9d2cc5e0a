"""The SenseVoice front end and encoder: reference numbers, padding, bfloat16, weight files."""

import json

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from toy_models import ASSETS
from transformers.models.whisper.modeling_whisper import sinusoids

from vita_audio.models import sensevoice
from vita_audio.models.sensevoice import SenseVoiceConfig, SenseVoiceSmall, read_weights
from vita_audio.speech_features import (
    FEATURE_SIZE,
    SenseVoiceFrontEnd,
    fbank,
    num_encoder_rows,
    stack_frames,
)

SENSEVOICE = ASSETS.parent / "sensevoice"
FRONT_END = SENSEVOICE / "front_end"
CASE = json.loads((FRONT_END / "case.json").read_text(encoding="utf-8"))
FEATURES = load_file(FRONT_END / "tensors.safetensors")
CLOSE = {"atol": 2e-4, "rtol": 1e-4}


def read_mean(file):
    samples, rate = soundfile.read(FRONT_END / file, dtype="float32", always_2d=True)
    assert rate == SenseVoiceFrontEnd.sample_rate
    return torch.from_numpy(samples.mean(axis=1))


@pytest.fixture(scope="module")
def front_end():
    return SenseVoiceFrontEnd.from_pretrained(FRONT_END)


@pytest.mark.parametrize("case", CASE["cases"], ids=lambda case: case["file"])
def test_features_match_the_reference(case, front_end):
    wave = read_mean(case["file"])
    features = front_end(wave)
    torch.testing.assert_close(fbank(wave * 32768), FEATURES[f"{case['index']}.fbank"], atol=2e-3, rtol=0)
    torch.testing.assert_close(features, FEATURES[f"{case['index']}.features"], atol=1e-3, rtol=0)
    assert len(features) == case["lfr_frames"] and num_encoder_rows(len(wave)) == case["lfr_frames"] + 4


@pytest.mark.parametrize("num_frames, table", CASE["lfr_index_table"].items())
def test_frames_are_stacked_as_in_the_reference(num_frames, table):
    assert stack_frames(torch.arange(int(num_frames))[:, None]).tolist() == table


@pytest.mark.parametrize("num_samples", [1, 2, 3, 40, 399, 400, 401, 559, 560, 1519, 1520, 16000])
def test_rows_are_known_from_the_number_of_samples(num_samples, front_end):
    features = front_end(torch.linspace(-0.5, 0.5, num_samples))
    assert features.shape == (num_encoder_rows(num_samples) - 4, FEATURE_SIZE)
    assert features.isfinite().all()


def test_normalisation_file_round_trip(tmp_path, front_end):
    front_end.save_pretrained(tmp_path)
    loaded = SenseVoiceFrontEnd.from_pretrained(tmp_path)
    assert torch.equal(loaded.shift, front_end.shift) and torch.equal(loaded.scale, front_end.scale)


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "no am.mvn in .*; get the folder again, or give the right one"),
        ("<Nnet>", "has no <AddShift>"),
        ("<AddShift> 2 2\n[ 1 2 ]\n<Rescale> 2 2\n[ 1 2 ]", r"560 values, got shapes \(2,\) and \(2,\)"),
    ],
)
def test_a_wrong_normalisation_file_is_one_clear_error(tmp_path, text, message):
    if text is not None:
        (tmp_path / "am.mvn").write_text(text, encoding="utf-8")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        SenseVoiceFrontEnd.from_pretrained(tmp_path)


@pytest.fixture
def golden():
    return load_file(SENSEVOICE / "encoder" / "tensors.safetensors")


@pytest.fixture
def model():
    model = SenseVoiceSmall(SenseVoiceConfig(output_size=32, linear_units=64, num_blocks=3, tp_blocks=2, vocab_size=64))
    model.load_state_dict(load_file(SENSEVOICE / "encoder" / "model.safetensors"))
    return model.requires_grad_(False)


def audios_of(golden):
    return [speech[:length] for speech, length in zip(golden["speech"], golden["lengths"], strict=True)]


def test_encoder_matches_the_reference(golden, model):
    states = {}
    model.encoder.encoders0[0].register_forward_hook(lambda *call: states.update(first=call[2]))
    model.encoder.after_norm.register_forward_hook(lambda *call: states.update(middle=call[2]))
    encoded = model(audios_of(golden))
    for row, length in enumerate(golden["inference_encode_lens"]):
        places = row, slice(length)
        torch.testing.assert_close(encoded[row], golden["inference_encode_out"][places], **CLOSE)
        torch.testing.assert_close(states["first"][places], golden["inference_encode.layer0_out"][places], **CLOSE)
        torch.testing.assert_close(states["middle"][places], golden["inference_encode.after_norm"][places], **CLOSE)
        torch.testing.assert_close(model.ctc.ctc_lo(encoded[row]), golden["ctc_logits"][places], **CLOSE)
    plain = model.encoder(golden["speech"], golden["lengths"])
    for row, length in enumerate(golden["lengths"]):
        torch.testing.assert_close(plain[row, :length], golden["encoder_out"][row, :length], **CLOSE)


def test_an_audio_is_encoded_the_same_in_any_company(golden, model):
    first, second = audios_of(golden)
    torch.testing.assert_close(model([first, second])[1], model([second])[0])


def test_encoding_leaves_the_features_alone_and_has_no_dropout(golden, model):
    audios = audios_of(golden)
    before = [audio.clone() for audio in audios]
    expected = model.eval()(audios)
    torch.testing.assert_close(model.train()(audios), expected)
    assert all(torch.equal(*pair) for pair in zip(audios, before, strict=True))


def test_bfloat16_stays_close_to_the_reference(golden, model):
    encoded = model.bfloat16()(audios_of(golden))
    for row, length in enumerate(golden["inference_encode_lens"]):
        for name in ("inference_encode_out", "bf16_inference_encode_out"):
            expected = golden[name][row, :length]
            assert (encoded[row].float() - expected).norm() < 3e-2 * expected.norm()


def test_positions_in_bfloat16_stay_apart_beyond_256_frames(golden, model):
    """Differs from the reference on purpose: there positions 300 and 301 are the same in bfloat16."""
    torch.testing.assert_close(sinusoids(301, 16)[1:], golden["pe_fp32"][0], atol=1e-6, rtol=0)
    assert (golden["pe_bf16"][0, 297:] == golden["pe_bf16"][0, 298]).all(dim=1).any()
    inputs = []
    model.bfloat16().encoder.encoders0[0].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model([torch.zeros(400, FEATURE_SIZE)])
    assert torch.equal(inputs[0][0, 4:], sinusoids(405, FEATURE_SIZE)[5:].bfloat16())


def test_names_and_shapes_are_those_of_sensevoice_small():
    expected = json.loads((SENSEVOICE / "keys_sensevoice_small.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        weights = SenseVoiceSmall(SenseVoiceConfig()).state_dict()
    assert {name: list(tensor.shape) for name, tensor in weights.items()} == expected["keys"]
    assert sum(tensor.numel() for tensor in weights.values()) == expected["parameters"]


@pytest.mark.parametrize("sizes", [{"output_size": 30}, {"kernel_size": 10}, {"num_queries": 15}, {"tp_blocks": 0}])
def test_impossible_sizes_are_an_error(sizes):
    with pytest.raises(ValueError, match="speech encoder"):
        SenseVoiceConfig(**sizes)


def test_weights_are_read_from_every_kind_of_file(tmp_path, model):
    expected = model.state_dict()
    files = {"plain": expected, "nested": {"state_dict": expected}}
    for name, content in files.items():
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "model.pt")
    (tmp_path / "safe").mkdir()
    save_file(expected, tmp_path / "safe" / "model.safetensors")
    for name in (*files, "safe"):
        weights = read_weights(tmp_path / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected)


class Trap:
    def __reduce__(self):
        return sensevoice.SenseVoiceConfig, ()


def test_damaged_and_foreign_weight_files_are_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model.safetensors or model.pt in"):
        read_weights(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"PK not a zip")
    with pytest.raises(ValueError, match="model.pt is cut off after 12 bytes"):
        read_weights(tmp_path)
    torch.save({"model": Trap()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt cannot be read as weights"):
        read_weights(tmp_path)
