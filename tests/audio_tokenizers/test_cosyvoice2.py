"""CosyVoice 2: codes of the real S3 tokenizer at a tiny size, its released file format, voices, streams."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from tiny_folders import LAYOUTS

from vita_audio.audio_tokenizers import cosyvoice2 as module
from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.optional import require

LAYOUT = LAYOUTS["cosyvoice2"]


@pytest.fixture(scope="module")
def tokenizer(folders):
    return get_audio_tokenizer("cosyvoice2", *folders["cosyvoice2"], num_steps=1)


def sound(seconds, seed=1):
    return 0.1 * torch.randn(round(16_000 * seconds), generator=torch.Generator().manual_seed(seed))


def test_sizes_are_those_of_the_released_layout(tokenizer):
    assert tokenizer.vocab_size == LAYOUT["vocab"] and tokenizer.frame_rate == LAYOUT["rate_hz"]
    assert (tokenizer.sample_rate, tokenizer.output_rate) == (16_000, 24_000)
    assert len(tokenizer.decode(LAYOUT["example"]["codes"])) == 12 * 960


@pytest.mark.parametrize("seconds", [1.0, 2.345])
def test_codes_are_those_of_the_package(tokenizer, seconds):
    utils = require("s3tokenizer.utils", purpose="tests", install="s3tokenizer", unused=["torchaudio"])
    mel = utils.log_mel_spectrogram(sound(seconds), 80)
    codes, lengths = tokenizer.speech_tokenizer(mel[None], torch.tensor([mel.shape[1]]))
    assert tokenizer.encode(sound(seconds), 16_000) == codes[0, : lengths[0]].tolist()


def test_more_than_thirty_seconds_have_codes(tokenizer):
    """The public wrapper returns none."""
    assert len(tokenizer.encode(sound(41), 16_000)) == 41 * 25


@pytest.mark.parametrize("num_samples", [1, 159, 640])
def test_very_short_waves_have_codes(tokenizer, num_samples):
    assert len(tokenizer.encode(sound(1)[:num_samples], 16_000)) == 1


def test_voice_is_prompt_and_embedding(tokenizer):
    voice = tokenizer.make_voice(sound(1.2), 16_000)
    assert voice.codes == tokenizer.encode(sound(1.2), 16_000) and voice.mel.shape == (80, 60)
    assert voice.embedding is None  # the folder has no campplus.onnx
    embedded = tokenizer.decode([1, 2, 3], module.FlowVoice(embedding=torch.ones(192)))
    assert not torch.allclose(embedded, tokenizer.decode([1, 2, 3]))


def test_a_hub_name_downloads_all_files_that_are_read(folders):
    names = {path.name for folder in folders["cosyvoice2"] for path in folder.iterdir()}
    names |= {"speech_tokenizer_v2.onnx", "campplus.onnx", "cosyvoice2.yaml", "flow.pt", "hift.pt"}
    assert names <= set(module.HUB_FILES)


def test_size_of_chunks_cannot_be_chosen(folders):
    with pytest.raises(ValueError, match=r"chunks of 25 codes, got stream_chunks \[10\]"):
        get_audio_tokenizer("cosyvoice2", *folders["cosyvoice2"], stream_chunks=[10])


def test_streams_come_in_chunks(tokenizer):
    stream, codes = tokenizer.stream(), list(range(60))
    parts = [stream.push([code]) for code in codes]
    assert [number for number, part in enumerate(parts, start=1) if len(part)] == [28, 53]
    whole = tokenizer.decoder.decode(codes, num_steps=1, is_chunked=True)
    torch.testing.assert_close(torch.cat([*parts, stream.flush()]), whole, atol=2e-4, rtol=0)


def save_onnx(weights, path):
    """Write weights as the released file has them: transposed matrices, names of layers on the nodes."""
    import onnx
    from onnx import helper, numpy_helper

    names = {
        "encoder.conv1.weight": "onnx::Conv_2216",
        "encoder.conv1.bias": "onnx::Conv_2217",
        "encoder.conv2.weight": "onnx::Conv_2218",
        "encoder.conv2.bias": "onnx::Conv_2219",
        "quantizer._codebook.project_down.weight": "onnx::MatMul_2536",
        "quantizer._codebook.project_down.bias": "quantizer.project_in.bias",
    }
    nodes, values = [], []

    def add(kind, node, *keys):
        inputs = []
        for key in keys:
            array = weights[key].T if weights[key].dim() == 2 else weights[key]
            values.append(numpy_helper.from_array(array.contiguous().numpy(), names.get(key, key)))
            inputs.append(values[-1].name)
        nodes.append(helper.make_node(kind, ["x", *inputs], ["x"], name=node))

    for key in weights:
        layer, _, part = key.rpartition(".")
        place = "/" + layer.removeprefix("encoder.").replace(".attn", "/attn").replace(".mlp", "/mlp")
        place = place.replace("/attn.", "/attn/").replace("/mlp.", "/mlp/mlp.")
        if key in names:
            add("Conv", f"/{key}", key)
        elif layer.endswith("_ln"):
            if part == "weight":
                add("LayerNormalization", f"{place}/LayerNormalization", key, f"{layer}.bias")
        elif "fsmn" in key:
            add("Conv", f"{place}/Conv", key)
        else:
            add("MatMul" if part == "weight" else "Add", f"{place}/{'MatMul' if part == 'weight' else 'Add'}", key)
    onnx.save(helper.make_model(helper.make_graph(nodes, "graph", [], [], values)), path)


def test_released_file_format(folders, tokenizer, tmp_path):
    source = folders["cosyvoice2"][0] / "speech_tokenizer_v2.safetensors"
    save_onnx(load_file(source), tmp_path / "speech_tokenizer_v2.onnx")
    loaded = get_audio_tokenizer("cosyvoice2", tmp_path)
    assert loaded.encode(sound(1), 16_000) == tokenizer.encode(sound(1), 16_000)
    assert loaded.fingerprint == tokenizer.fingerprint
    with pytest.raises(ValueError, match="loaded without a speech decoder; give decoder_path"):
        loaded.decode([1])


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the package onnxruntime")
def test_speaker_embedding(tmp_path):
    """With a network that returns the largest feature of each band: features are Kaldi's, less their mean."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node("ReduceMax", ["features", "axes"], ["embedding"], keepdims=0)
    axes = onnx.numpy_helper.from_array(torch.tensor([1]).numpy(), "axes")
    inputs = [helper.make_tensor_value_info("features", kind, [1, None, 80])]
    outputs = [helper.make_tensor_value_info("embedding", kind, [1, 80])]
    graph = helper.make_graph([node], "graph", inputs, outputs, [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "campplus.onnx")
    encoder = module.SpeakerEncoder(tmp_path / "campplus.onnx")
    quiet, loud = encoder(sound(1)), encoder(4 * sound(1))
    assert quiet.shape == (80,) and (quiet > 0).all()
    torch.testing.assert_close(quiet, loud, atol=1e-3, rtol=0)  # the mean takes the volume away


def test_wrong_folders_are_named(folders, tmp_path):
    with pytest.raises(ValueError, match="give the folder of FunAudioLLM/CosyVoice2-0.5B as path"):
        get_audio_tokenizer("cosyvoice2")
    if find_spec("s3tokenizer") is None:
        pytest.skip("needs the package s3tokenizer: pip install 'vita-audio[cosyvoice2]'")
    with pytest.raises(FileNotFoundError, match="no speech_tokenizer_v2.safetensors or .* in .*; get the folder"):
        get_audio_tokenizer("cosyvoice2", tmp_path)
