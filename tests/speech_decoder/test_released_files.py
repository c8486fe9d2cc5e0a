"""The released `config.yaml`: read without running it, written so that it reads the same."""

import pytest
import yaml

from vita_audio.speech_decoder.config import DecoderConfig, FlowConfig, FlowMatchingConfig, HiFTConfig
from vita_audio.speech_decoder.released_files import read_config, write_config

LLM_BLOCK = """
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_token_size: 51866
    sampling: !name:cosyvoice.utils.common.ras_sampling
        top_p: 0.8
    loss: !ref <missing> * 2
"""


UNUSED_IN_THE_RELEASED_FILE = """
__set_seed4: !apply:torch.cuda.manual_seed_all [1986]
text_encoder_input_size: 512
llm_input_size: 1024
llm_output_size: 1024
llm: !new:cosyvoice.llm.llm.TransformerLM
    text_encoder_input_size: !ref <text_encoder_input_size>
    text_encoder: !new:cosyvoice.transformer.encoder.ConformerEncoder
        input_size: !ref <text_encoder_input_size>
        static_chunk_size: 1
    llm: !new:cosyvoice.transformer.encoder.TransformerEncoder
        input_size: !ref <llm_input_size>
"""


def _plain(value):
    """Without class names, as the facts file has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key != "class"}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _read_text(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def test_defaults_are_the_released_configuration(tmp_path, facts):
    path = tmp_path / "config.yaml"
    write_config(DecoderConfig(), path)

    class PlainLoader(yaml.SafeLoader):
        pass

    PlainLoader.add_multi_constructor("!new:", lambda loader, tag, node: loader.construct_mapping(node, deep=True))
    written = yaml.load(path.read_text(encoding="utf-8"), Loader=PlainLoader)
    written["flow"]["decoder"]["cfm_params"] = written["flow"]["decoder"]["cfm_params"]["content"]
    assert written == _plain(facts("glm4voice_decoder_config")["config"])
    assert read_config(path) == DecoderConfig()


def test_released_layout_with_references_calls_and_llm_block(tiny_folder, tmp_path):
    text = (tiny_folder / "config.yaml").read_text(encoding="utf-8")
    config = _read_text(tmp_path, text + LLM_BLOCK)
    assert config == read_config(tiny_folder / "config.yaml")
    assert config.flow.spk_embed_dim == 192 and config.hift.sampling_rate == 22050  # both are !ref
    assert config.flow.cfm.sigma_min == 1e-6  # YAML reads 1e-06 as text
    write_config(config, tmp_path / "again.yaml")
    assert read_config(tmp_path / "again.yaml") == config


def test_temperature_is_written_only_where_it_differs_from_the_release(tmp_path):
    path = tmp_path / "config.yaml"
    config = DecoderConfig(flow=FlowConfig(cfm=FlowMatchingConfig(inference_temperature=0.25)))
    write_config(config, path)
    assert "inference_temperature: 0.25" in path.read_text(encoding="utf-8")
    assert read_config(path) == config
    with pytest.raises(ValueError, match=r"inference_temperature must be in \[0, 1\], got 2.0"):
        _read_text(tmp_path, path.read_text(encoding="utf-8").replace("temperature: 0.25", "temperature: 2"))


def test_released_file_of_full_size(tmp_path, facts):
    """Seeds, unused sizes and the `llm` block of the released file, around the blocks that count."""
    write_config(DecoderConfig(), tmp_path / "config.yaml")
    blocks = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    blocks = "".join(line for line in blocks.splitlines(True) if "inference_temperature" not in line)
    blocks = blocks.replace("sampling_rate: 22050", "sampling_rate: !ref <sample_rate>")
    assert _read_text(tmp_path, UNUSED_IN_THE_RELEASED_FILE + blocks) == DecoderConfig()


def test_nothing_in_the_file_runs(tiny_folder, tmp_path):
    text = (tiny_folder / "config.yaml").read_text(encoding="utf-8")
    target = tmp_path / "touched"
    _read_text(tmp_path, f"attack: !apply:os.system ['touch {target}']\n" + text)
    with pytest.raises(ValueError, match="python/object"):
        _read_text(tmp_path, f"attack: !!python/object/apply:os.system ['touch {target}']\n" + text)
    assert not target.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    vocab_size: 256\n", "", "flow lacks vocab_size"),
        ("output_size: 80\n", "size: 80\n", "flow lacks output_size"),
        ("num_blocks: 2", "num_blocks: two", "flow.encoder.num_blocks must be a number, got 'two'"),
        ("macaron_style: False", "macaron_style: True", "flow.encoder.macaron_style must be False, got True"),
        ("        block_size: 10", "        block_size: 10\n        extra: 1", "flow.encoder has unknown keys extra"),
        ("!ref <spk_embed_dim>", "!ref <nobody>", "flow.spk_embed_dim must be a number, got '!ref <nobody>'"),
        (
            "!ref <sample_rate>",
            "!ref <sample_rate> * 2",
            "hift.sampling_rate must be a number, got '!ref <sample_rate> * 2'",
        ),
        ("sample_rate: 22050", "sample_rate: 24000", "got sampling_rate, samples per frame"),
        ("hift: !new", "vocoder: !new", "the block hift is missing"),
        ("flow: !new", "flow: [!new", "config.yaml"),
    ],
)
def test_wrong_files_are_refused(tiny_folder, tmp_path, old, new, message):
    text = (tiny_folder / "config.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(ValueError, match="config.yaml") as error:
        _read_text(tmp_path, text.replace(old, new, 1))
    assert message in str(error.value)


def test_missing_file_and_empty_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.yaml is missing"):
        read_config(tmp_path / "config.yaml")
    with pytest.raises(ValueError, match="config.yaml is empty"):
        _read_text(tmp_path, "")
    with pytest.raises(ValueError, match="config.yaml must hold settings, got a list"):
        _read_text(tmp_path, "- flow")
    (tmp_path / "config.yaml").write_bytes(b"flow: \xff\xfe")
    with pytest.raises(ValueError, match="config.yaml is not YAML"):
        read_config(tmp_path / "config.yaml")


def test_vocoder_must_fit_the_mel():
    with pytest.raises(ValueError, match="must share a mel of 80 bands at 22050 Hz and 256 samples per frame"):
        DecoderConfig(hift=HiFTConfig(upsample_rates=(8, 4)))
