"""Tools that make and train what the demo starts from end with one line for wrong input."""

import pytest

from tools.demo import make_corpus, make_tokenizer, train_text_lm


@pytest.mark.parametrize(
    ("tool", "flags", "message"),
    [
        (make_tokenizer, "--out {0} --vocab-size 100", "vocab_size must be at least 259, got 100"),
        (make_corpus, "--out {0}/a.txt --size ci --voice {0}/none.onnx", "a.txt"),
        (train_text_lm, "--tokenizer {0}/none --output {0}/run --export {0}/model", "no folder {0}/none"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_input_is_one_line_and_exit_code_2(tool, flags, message, tmp_path, capsys):
    (tmp_path / "a.txt").touch()
    with pytest.raises(SystemExit) as exit_code:
        tool.main(flags.format(tmp_path).split())
    lines = capsys.readouterr().err.splitlines()
    assert exit_code.value.code == 2
    assert lines[-1].startswith(f"{tool.__name__.split('.')[-1]}: ") and message.format(tmp_path) in lines[-1]
