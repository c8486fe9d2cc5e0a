"""scripts/serve_vllm.sh checks what it was given before it installs or starts anything."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("arguments", [[], ["nowhere"], ["--port", "8000"]], ids=" ".join)
def test_without_the_folder_of_a_model_it_says_so(arguments):
    command = ["bash", ROOT / "scripts" / "serve_vllm.sh", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr == f"serve_vllm.sh: give the folder of a model, got '{(arguments or [''])[0]}'\n"


@pytest.mark.parametrize("script", ["scripts/serve_vllm.sh", "third_party/vllm_plugin/setup_env.sh"])
def test_scripts_parse(script):
    assert subprocess.run(["bash", "-n", ROOT / script]).returncode == 0
