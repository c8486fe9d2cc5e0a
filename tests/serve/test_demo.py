"""`demo.json` next to a model says what it can talk about."""

import json

import pytest

from vita_audio.serve.demo import QUESTIONS, Demo, load_demo, load_demos


def test_a_model_with_and_without_it(tmp_path):
    assert load_demo(tmp_path) == Demo(domain="", questions=QUESTIONS)
    demo = {"domain": "I know capitals.", "questions": ["what is the capital of peru"]}
    (tmp_path / "demo.json").write_text(json.dumps(demo))
    assert load_demo(tmp_path).model_dump() == demo | {"bare_words": False, "system_prompt": True, "max_turns": None}


def test_an_adapter_has_its_own(tmp_path):
    (tmp_path / "demo.json").write_text('{"bare_words": true}')
    (tmp_path / "one").mkdir()
    adapters = {"base": None, "one": str(tmp_path / "one"), "two": "name/on-the-hub"}
    assert load_demos(tmp_path, adapters) == {"base": Demo(bare_words=True), "one": Demo(), "two": Demo()}


@pytest.mark.parametrize(
    "content, where", [("{", "the file"), ('{"domain": 3}', "domain"), ('{"topics": []}', "topics")]
)
def test_errors_name_the_file_and_the_field(tmp_path, content, where):
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(ValueError, match=f"demo.json: {where}: .*it may have domain"):
        load_demo(tmp_path)
