"""The report of a run: everything in one file, and written while the run continues."""

import base64
import json
import re
from io import BytesIO
from types import SimpleNamespace

import pytest
from PIL import Image

from vita_audio.training.report import RunReport, write_report

ENTRY = {
    "loss": 2.0,
    "step": 3,
    "num_tokens": 600,
    "minutes": 0.5,
    "eta_minutes": 12.5,
    "tokens_per_second": 20.0,
    "pack_fill": 0.875,
    "learning_rate": 0.1,
    "grad_norm_backbone": 1.0,
    **{"main_loss": 2.25, "main_accuracy": 0.5, "main_text_loss": 1.25, "main_audio_loss": 2.75},
    **{"mtp_0_loss": 3.5, "mtp_0_accuracy": 0.25, "mtp_0_agreement": 0.625},
}
HISTORY = [ENTRY, {**ENTRY, "step": 4, "mtp_0_loss": 3.125}]
DATA = {"num_documents": 7, "num_tokens": 600, "num_targets": 300, "num_packs": 5, "max_length": 128, "fill": 0.9375}


@pytest.fixture
def folder(tmp_path):
    problems = [{"file": "a<b.jsonl", "line": 12, "kind": "too long", "reason": "900 tokens, the limit is 128"}]
    (tmp_path / "data_report.json").write_text(json.dumps({**DATA, "problems": problems}))
    (tmp_path / "run_arguments.json").write_text(json.dumps({"learning_rate": 0.03125, "config_name": None}))
    return tmp_path


def table_rows(html):
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", html)]


def test_all_is_in_one_file(folder):
    write_report(folder, HISTORY)
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:)", html)
    images = [Image.open(BytesIO(base64.b64decode(code))) for code in re.findall(r"base64,([^\"]+)", html)]
    assert len(images) == 2 and all(image.size[0] > 1000 for image in images)
    rows = table_rows(html)
    header = ["depth", "loss", "loss of text", "loss of audio codes", "accuracy", "agreement with the backbone"]
    assert rows[:3] == [
        header,
        ["0 (main)", "2.2500", "1.2500", "2.7500", "0.5000", ""],
        ["1 (mtp_0)", "3.1250", "", "", "0.2500", "0.6250"],
    ]
    assert ["too long", "a&lt;b.jsonl:12", "900 tokens, the limit is 128"] in rows
    assert ["learning_rate", "0.03125"] in rows and "config_name" not in html
    assert "Step 4 after 0.5 minutes, about 12.5 minutes remain" in html and "pack fill 87.5%" in html
    assert "7 documents" in html and "samples left out: 1" in html


def test_a_run_without_data_report_or_modules_has_a_report_too(tmp_path):
    entry = {key: value for key, value in ENTRY.items() if not key.startswith("mtp_0")}
    write_report(tmp_path, [entry])
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "0 (main)" in html and "<h2>Data</h2>" not in html


def test_a_report_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    output_dir = tmp_path / "file"
    output_dir.touch()  # no folder: every write fails
    state = SimpleNamespace(is_world_process_zero=True, log_history=HISTORY)
    RunReport().on_log(SimpleNamespace(output_dir=str(output_dir)), state, None, logs=ENTRY)
    assert "report.html could not be written" in caplog.text


def test_the_report_is_written_during_the_run_but_not_at_every_entry(folder, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("vita_audio.training.report.time.monotonic", lambda: now[0])
    callback, args = RunReport(), SimpleNamespace(output_dir=str(folder))
    seen = []
    for seconds, is_main in ((0, False), (1, True), (30, True), (302, True)):
        now[0] = 1000.0 + seconds
        (folder / "report.html").unlink(missing_ok=True)
        state = SimpleNamespace(is_world_process_zero=is_main, log_history=HISTORY)
        callback.on_log(args, state, None, logs=ENTRY)
        seen.append((folder / "report.html").exists())
    assert seen == [False, True, False, True]
