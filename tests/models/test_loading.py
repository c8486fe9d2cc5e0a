"""Speech models load from every kind of folder, or say which file is at fault; toy weights of the real classes."""

import json
import shutil

import pytest
import torch
from files.broken_folders import cut_off, make_pointer
from files.released_folders import as_shards, as_the_public_code_saves
from safetensors.torch import load_file, save_file
from toy_speech_lm import TINY_TOKENIZER

from vita_audio.audio_tokenizers import get_audio_tokenizer
from vita_audio.inference.pipeline import SpeechLM
from vita_audio.inference.tasks import make_conversation
from vita_audio.models.surgery import MODULE_PARTS
from vita_audio.text import TextTokenizer

QUESTION = make_conversation("sts", audio=[1, 2, 3], text="What is it?")


@pytest.fixture(scope="module")
def audio_tokenizer(toy_folders):
    return get_audio_tokenizer("glm4voice", toy_folders.audio_tokenizer)


@pytest.fixture
def folder(toy_folders, tmp_path):
    shutil.copytree(toy_folders.model, tmp_path / "model")
    return tmp_path / "model"


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder, audio_tokenizer, **options):
    return SpeechLM.from_pretrained(folder, audio_tokenizer, "cpu", **options)


def answer(speech_lm):
    return speech_lm.respond(QUESTION, "boost", decode_audio=False, do_sample=False, max_new_tokens=24).ids


@pytest.fixture(scope="module")
def expected(toy_folders, audio_tokenizer):
    return answer(load(toy_folders.model, audio_tokenizer))


def as_torch_file(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("change", [as_shards, as_torch_file, as_the_public_code_saves])
def test_every_layout_gives_the_same_answer(folder, audio_tokenizer, expected, change):
    change(folder)
    assert answer(load(folder, audio_tokenizer)) == expected


def test_a_model_of_the_public_code_is_saved_as_ours(folder, tmp_path, audio_tokenizer):
    as_the_public_code_saves(folder)
    change_config(folder, rope_theta=1_000_000.0)
    speech_lm = load(folder, audio_tokenizer)
    assert speech_lm.model.config.rope_parameters["rope_theta"] == 1_000_000
    speech_lm.model.save_pretrained(tmp_path / "again")
    assert "auto_map" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_dtype_and_place_of_the_weights(toy_folders, audio_tokenizer, expected, tmp_path):
    half = load(toy_folders.model, audio_tokenizer, dtype=torch.bfloat16, attn_implementation="eager")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    assert half.model.config._attn_implementation == "eager"
    parts = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head", *MODULE_PARTS)
    places = dict.fromkeys(parts, "cpu")
    places |= {
        f"model.layers.{layer}": "disk" if layer in (1, 3) else "cpu" for layer in range(len(half.model.model.layers))
    }
    spread = load(toy_folders.model, audio_tokenizer, device_map=places, offload_folder=tmp_path)
    assert next(spread.model.model.layers[3].parameters()).device.type == "meta"
    assert answer(spread) == expected


def of_another_kind(folder):
    change_config(folder, model_type="mistral")


def without_a_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_another_width(folder):
    change_config(folder, intermediate_size=24)


DAMAGES = {
    "missing shard": (
        lambda folder: (as_shards(folder), next(folder.glob("model-00002*")).unlink()),
        r"model-00002-of-\d+.safetensors is missing \(1 of",
    ),
    "cut off": (
        lambda folder: cut_off(folder / "model.safetensors"),
        "model.safetensors is cut off or damaged .* get it again",
    ),
    "pointer": (lambda folder: make_pointer(folder / "model.safetensors"), "model.safetensors is a Git LFS pointer"),
    "config pointer": (lambda folder: make_pointer(folder / "config.json"), "config.json is a Git LFS pointer"),
    "generation": (lambda folder: cut_off(folder / "generation_config.json"), "generation_config.json is not JSON"),
    "generation pointer": (
        lambda folder: make_pointer(folder / "generation_config.json"),
        "generation_config.json is a Git LFS pointer",
    ),
    "tokenizer": (lambda folder: cut_off(folder / "tokenizer.json"), "tokenizer.json is not JSON"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "no text tokenizer in .*model"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights in .*model"),
    "other kind": (of_another_kind, "config.json: model_type must be one of llama_mtp, qwen2_mtp, .*, got mistral"),
    "impossible config": (
        lambda folder: change_config(folder, num_nextn_predict_layers=99),
        "config.json: num_hidden_layers counts backbone layers and MTP modules",
    ),
    "lacking": (without_a_tensor, "do not fit its config.json: model.layers.0.mlp.up_proj.weight are missing"),
    "other width": (with_another_width, r"of another shape: .*down_proj.weight \(32, 48\) instead of \(32, 24\)"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_error_names_the_file(folder, audio_tokenizer, name):
    damage, message = DAMAGES[name]
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load(folder, audio_tokenizer)
    assert str(folder) in str(caught.value)


def test_codes_of_another_audio_tokenizer_are_refused(folder, audio_tokenizer, tmp_path, expected):
    own = {"type": "glm4voice", "fingerprint": audio_tokenizer.fingerprint}
    change_config(folder, audio_tokenizer=own)
    assert answer(load(folder, audio_tokenizer)) == expected
    change_config(folder, audio_tokenizer=own | {"fingerprint": "glm4voice-0123"})
    message = f"was trained on codes of the audio tokenizer glm4voice-0123, got {own['fingerprint']}: other weights of"
    with pytest.raises(ValueError, match=message):
        load(folder, audio_tokenizer)
    assert answer(load(folder, audio_tokenizer, any_audio_tokenizer=True)) == expected
    change_config(folder, audio_tokenizer={"type": "snac24khz", "fingerprint": "snac24khz-0123"})
    with pytest.raises(ValueError, match="glm4voice instead of snac24khz, whose codes mean something else"):
        load(folder, audio_tokenizer)


def test_the_shipped_generation_settings_are_honoured(folder, audio_tokenizer):
    """The file of the released models, with the ids of the toy vocabulary."""
    tokenizer = TextTokenizer.from_pretrained(TINY_TOKENIZER, audio_tokenizer.vocab_size)
    shipped = {
        "bos_token_id": tokenizer.pad_id,
        "do_sample": True,
        "eos_token_id": [tokenizer.im_end_id, tokenizer.pad_id],
        "mtp_inference_mode": [1, 4, 3, 8, 4, 10],
        "pad_token_id": tokenizer.pad_id,
        "repetition_penalty": 1.05,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "transformers_version": "4.48.3",
    }
    (folder / "generation_config.json").write_text(json.dumps(shipped))
    speech_lm = load(folder, audio_tokenizer)
    prompt = torch.tensor([speech_lm.prompt_ids(QUESTION)])
    plain = {"top_k": 0, "top_p": 1.0, "temperature": 1.0, "repetition_penalty": 1.0, "do_sample": False}

    def respond(**options):
        torch.manual_seed(3)
        return speech_lm.respond(QUESTION, decode_audio=False, max_new_tokens=40, **options).ids

    def generate(**options):
        torch.manual_seed(3)
        return speech_lm.model.generate(prompt, max_new_tokens=40, **options)[0, prompt.shape[1] :].tolist()

    spelled_out = {name: shipped[name] for name in ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")}
    assert respond() == generate(mtp_inference_mode="balance", **spelled_out)
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        unchanged = {name: plain[name]}
        assert respond(**unchanged) == generate(mtp_inference_mode="balance", **spelled_out | unchanged)
    assert respond() != respond(repetition_penalty=3.0)
    greedy = respond(do_sample=False)
    for end in (tokenizer.im_end_id, tokenizer.pad_id):  # both ids of the list end an answer

        def force_end(ids, scores, end=end):
            scores[:, end] = torch.inf if ids.shape[1] == prompt.shape[1] + 5 else -torch.inf
            return scores

        assert respond(do_sample=False, logits_processor=[force_end])[-1] == end
        assert len(respond(do_sample=False, logits_processor=[force_end])) == 6 <= len(greedy)


def test_repetition_penalty_does_not_count_padding(folder, audio_tokenizer):
    """The padding of a batch is a token that ends answers; penalising it would change only short prompts' answers."""
    speech_lm = load(folder, audio_tokenizer)
    options = {"repetition_penalty": 20.0, "max_new_tokens": 30, "decode_audio": False, "do_sample": False}
    conversations = [QUESTION, make_conversation("text", text="Hi"), make_conversation("tts", text="Good morning " * 5)]
    batch = speech_lm.respond_batch(conversations, **options)
    assert [row.ids for row in batch] == [speech_lm.respond(one, **options).ids for one in conversations]
