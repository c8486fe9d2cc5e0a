"""The real Qwen2.5 tokenizer grows as in the released models: same ids, same encodings."""

import json
from pathlib import Path

import pytest

from vita_audio.text import TextTokenizer

ASSETS = Path(__file__).parent / "assets" / "qwen2_tokenizer"
CASES = json.loads((ASSETS / "encodings.json").read_text(encoding="utf-8"))["cases"]
CHATS = json.loads((ASSETS / "chat_input_ids.json").read_text(encoding="utf-8"))["cases"]
NUM_CODES = {"None": 0, "glm4voice": 16384, "sensevoice_glm4voice": 16384}


@pytest.mark.parametrize("name", NUM_CODES)
def test_vocabulary_and_encodings_equal_reference(qwen2_folder, name):
    case = CASES[name]
    tokenizer = TextTokenizer.from_pretrained(
        qwen2_folder, NUM_CODES[name], continuous_input=name.startswith("sensevoice")
    )
    assert len(tokenizer) == case["len"]
    vocabulary = tokenizer.base.get_vocab()
    assert {token: vocabulary.get(token) for token in case["added_token_ids"]} == case["added_token_ids"]
    assert (tokenizer.im_end_id, tokenizer.pad_id) == (case["eos"], case["pad"]) == (151645, 151643)
    for encoding in case["encodings"]:
        assert tokenizer.encode(encoding["text"]) == encoding["ids"]
        assert tokenizer.base.decode(encoding["ids"]) == encoding["decoded"]
        assert tokenizer.base.decode(encoding["ids"], skip_special_tokens=True) == encoding["decoded_skip_special"]
    chats = [chat for chat in CHATS if chat["audio_tokenizer_type"] == name]
    assert len(chats) == (0 if name == "None" else 19)
    for chat in chats:
        options = {"add_generation_prompt": True, "return_dict": False}
        assert tokenizer.base.apply_chat_template(chat["messages"], **options) == chat["input_ids"], chat[
            "conversation"
        ]


def test_a_trained_model_keeps_its_168069_tokens(qwen2_folder, tmp_path):
    tokenizer = TextTokenizer.from_pretrained(qwen2_folder, 16384)
    assert (len(tokenizer), tokenizer.padded_size) == (168069, 168072)
    tokenizer.save_pretrained(tmp_path)
    again = TextTokenizer.from_pretrained(tmp_path)
    assert (again.num_audio_codes, again.first_audio_id, len(again)) == (16384, 151685, 168069)
    texts = [encoding["text"] for encoding in CASES["glm4voice"]["encodings"]]
    assert [again.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
