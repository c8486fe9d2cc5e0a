"""Data yaml files, against the reference and by rule."""

import json
from pathlib import Path

import pytest

from vita_audio.data.mixture import load_mixture, read_entries, shuffled

ASSETS = Path(__file__).parents[1] / "assets/data"
GOLDEN = json.loads((ASSETS / "yaml_config.json").read_text(encoding="utf-8"))

# The reference leaves out, or fails on, what these name; here they are an error, or they load.
ERRORS = {
    "zero_and_missing.yaml": "no file or folder does_not_exist.jsonl",
    "all_missing.yaml": "no file or folder nope.jsonl",
    "no_dataset_key.yaml": "expected `dataset:",
    "null_paths.yaml": "data_paths must be a list",
    "negative_ratio.yaml": "ratio must be a number, 0 or more, got -1",
}
LOAD_HERE = {
    "folder.yaml": 10,
    "broken_line.yaml": 6,
    "null_list_audios_mixed.yaml": 12,
    "content_list_mixed.yaml": 10,
    "content_list_mixed_cast.yaml": 10,
    "name_key_mixed.yaml": 12,
    "name_key_mixed_cast.yaml": 12,
    "extra_columns_cast.yaml": 12,
}
SAME = [case for case in GOLDEN["configs"] if case["config"] not in ERRORS | LOAD_HERE]


@pytest.mark.parametrize("case", SAME, ids=lambda case: f"{case['config']}-{case['seed']}")
def test_order_of_rows_equals_reference(case):
    rows = load_mixture(ASSETS / "yaml" / case["config"], case["seed"]).rows
    order = []
    for row in rows:
        sample = json.loads(row["sample"])
        first = (sample.get("conversations") or sample["messages"])[0]["content"]
        order.append([row["source"], first.split()[0]])
    assert order == case["order"]


@pytest.mark.parametrize("config", ERRORS)
def test_wrong_yaml_is_one_clear_error(config):
    with pytest.raises((ValueError, FileNotFoundError), match=ERRORS[config]):
        load_mixture(ASSETS / "yaml" / config)


@pytest.mark.parametrize("config", LOAD_HERE)
def test_files_with_other_columns_load_together(config):
    assert len(load_mixture(ASSETS / "yaml" / config).rows) == LOAD_HERE[config]


@pytest.mark.parametrize("name", GOLDEN["shuffle_rule"])
def test_shuffle_rule(name):
    count, seed = (int(part.split("=")[1]) for part in name.split(","))
    assert shuffled(count, seed).tolist() == GOLDEN["shuffle_rule"][name]["two_shuffles"]


def test_line_numbers_lead_back_to_the_sample():
    mixture = load_mixture(ASSETS / "yaml/ratio_num.yaml")
    for row in mixture.rows:
        file = Path(mixture.sources[row["source"]].file)
        if file.suffix == ".jsonl":
            line = file.read_text(encoding="utf-8").splitlines()[row["line"] - 1]
            assert json.loads(line) == json.loads(row["sample"])
        else:
            assert json.loads(file.read_text(encoding="utf-8"))[row["line"] - 1] == json.loads(row["sample"])


def write_yaml(folder, text):
    path = folder / "mixture.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("broken", ['{"messages": [', "{not json", '{"messages": "caf\udce9"}', "plain words"])
def test_json_broken_at_line_three_is_counted_and_the_rest_used(tmp_path, broken):
    good = json.dumps({"messages": [{"role": "user", "content": "é"}]}, ensure_ascii=False)
    content = "\n".join([good, "", broken, good]).encode("utf-8", errors="surrogateescape")
    (tmp_path / "a.jsonl").write_bytes(content)
    mixture = load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [a.jsonl]}}"))
    assert sorted(mixture.rows["line"]) == [1, 4]
    (problem,) = mixture.problems
    assert str(problem).startswith(f"{tmp_path}/a.jsonl:3: not JSON")


def test_a_line_nested_too_deeply_is_counted_and_the_rest_used(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + "[" * 100_000 + "\n" + '{"a": 2}\n')
    (tmp_path / "b.jsonl").write_text('{"a": ' + "[" * 100_000 + "\n" + '{"a": 2}\n')
    mixture = load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [a.jsonl, b.jsonl]}}"))
    assert sorted(mixture.rows["line"]) == [1, 2, 3]
    reasons = [f"{tmp_path}/{place}: not JSON: brackets are nested too deeply" for place in ("a.jsonl:2", "b.jsonl:1")]
    assert [str(problem) for problem in mixture.problems] == reasons


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("text", ['{"messages": []}\n{"messages": []}\n', '[{"messages": []}]'])
def test_a_file_that_is_not_utf8_is_named(tmp_path, encoding, text):
    (tmp_path / "a.jsonl").write_bytes(text.encode(encoding))
    with pytest.raises(ValueError, match=r"a\.jsonl(:1: not JSON|: not a JSON list)"):
        load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [a.jsonl]}}"))


def test_json_list_broken_at_line_three_names_the_place(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"messages": []},\n{oops}\n]')
    with pytest.raises(ValueError, match=r"a\.json: not a JSON list: .*line 3 column 2.*repair the file"):
        load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [a.json]}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: {x: {ratio: two, data_paths: [a]}}", "ratio must be a number, 0 or more, got 'two'"),
        ("dataset: {x: {ratio: .nan, data_paths: [a]}}", "ratio must be a number"),
        ("dataset: {x: {num: 1.5, data_paths: [a]}}", "num must be an integer, 0 or more, got 1.5"),
        ("dataset: {x: {data_paths: a.jsonl}}", "data_paths must be a list"),
        ("dataset: {x: {data_path: [a]}}", "allowed keys are data_paths, num, ratio"),
        ("dataset: [a]", "expected `dataset:"),
        ("datasets: {}", "expected `dataset:"),
        ("dataset: {", "not yaml"),
        ("dataset: {x: {ratio: 0, data_paths: [gone]}}", "no rows in 0 data files"),
    ],
)
def test_malformed_yaml_is_one_clear_error(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_mixture(write_yaml(tmp_path, text))


def test_a_yaml_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "mixture.yaml"
    path.write_bytes("dataset: {x: {data_paths: [a]}}".encode("utf-16"))
    with pytest.raises(ValueError, match=f"{path}: not yaml: .*utf-8"):
        load_mixture(path)


def test_folders_in_a_folder_are_no_data_files_whatever_their_names(tmp_path):
    (tmp_path / "data/a.jsonl").mkdir(parents=True)
    (tmp_path / "data/a.jsonl/b.jsonl").write_text('{"a": 1}\n')
    mixture = load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [data]}}"))
    assert [source.file for source in mixture.sources] == [str(tmp_path / "data/a.jsonl/b.jsonl")]


def test_missing_yaml_and_empty_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.yaml: no such data yaml"):
        load_mixture(tmp_path / "gone.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.json or \.jsonl file in folder empty"):
        load_mixture(write_yaml(tmp_path, "dataset: {x: {data_paths: [empty]}}"))


def test_paths_count_from_the_yaml_and_then_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "config").mkdir()
    (tmp_path / "config/near.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "far.jsonl").write_text('{"a": 2}\n')
    monkeypatch.chdir(tmp_path)
    (entry,) = read_entries(write_yaml(tmp_path / "config", "dataset: {x: {data_paths: [near.jsonl, far.jsonl]}}"))
    assert [file.resolve() for file in entry.files] == [tmp_path / "config/near.jsonl", tmp_path / "far.jsonl"]


def test_keys_without_effect_are_named_once(tmp_path, write_mixture, caplog):
    path = write_mixture([{"messages": [{"role": "user", "content": "hi"}]}])
    path.write_text("\ufeff" + path.read_text() + "do_dataset_cast: true\nxlsx_sample_num: 5\n", encoding="utf-8")
    for _ in range(2):
        assert len(load_mixture(path).rows) == 1
    assert [record.message for record in caplog.records] == [
        f"{path}: do_dataset_cast, xlsx_sample_num have no effect here"
    ]
