"""The configurations in configs/models: as many parameters as the published text models have, and modules on top."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from vita_audio.models import SPEECH_CONFIGS
from vita_audio.models.loading import read_config
from vita_audio.models.surgery import match_any, mtp_parameter_patterns

FOLDER = Path(__file__).parents[2] / "configs" / "models"
QWEN_ROWS, LLAMA_ROWS = 151_936, 128_256
PUBLISHED = {  # file -> rows of the text model, parameters according to its weight files (two tied tables count once)
    "qwen2.5_0.5b": (QWEN_ROWS, 494_032_768),
    "qwen2.5_1.5b": (QWEN_ROWS, 1_543_714_304),
    "qwen2.5_3b": (QWEN_ROWS, 3_085_938_688),
    "qwen2_7b": (152_064, 7_615_616_512),
    "qwen3_0.6b": (QWEN_ROWS, 596_049_920),
    "qwen3_1.7b": (QWEN_ROWS, 1_720_574_976),
    "qwen3_4b": (QWEN_ROWS, 4_022_468_096),
    "qwen3_8b": (QWEN_ROWS, 8_190_735_360),
    "llama3.2_1b": (LLAMA_ROWS, 1_235_814_400),
}


def empty_model(name, **changes):
    config = read_config(FOLDER / f"{name}.json", SPEECH_CONFIGS)
    for field, value in changes.items():
        setattr(config, field, value)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def test_every_base_has_one_and_ten_modules():
    bases = {path.name.rsplit("_mtp", 1)[0] for path in FOLDER.glob("*.json")} - {"qwen2_7b_sensevoice"}
    assert {base for base in bases if not base.startswith("tiny")} == PUBLISHED.keys()
    for base in PUBLISHED:
        one, ten = (json.loads((FOLDER / f"{base}_mtp{number}.json").read_text()) for number in (1, 10))
        assert (one.pop("num_nextn_predict_layers"), ten.pop("num_nextn_predict_layers")) == (1, 10)
        assert one.pop("num_hidden_layers") + 9 == ten.pop("num_hidden_layers")
        assert one == ten


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_backbone_has_the_parameters_of_the_text_model(name):
    rows, expected = PUBLISHED[name]
    model = empty_model(f"{name}_mtp1", vocab_size=rows)
    modules = set(match_any(dict(model.named_parameters()), mtp_parameter_patterns(model.config)))
    assert sum(value.numel() for key, value in model.named_parameters() if key not in modules) == expected
    hidden = model.config.hidden_size
    layer = sum(value.numel() for value in model.model.layers[0].parameters())
    num_module = sum(value.numel() for key, value in model.named_parameters() if key in modules)
    assert num_module == layer + 2 * hidden * hidden + 2 * hidden
