"""`python -m vita_audio.serve` as users start it."""

import re
import shutil
import signal
import ssl
import subprocess
from dataclasses import replace

import httpx2 as httpx
import pytest
from server_process import start

from vita_audio.serve.__main__ import page_host, parse_arguments


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_server_with_tls_and_a_token(toy_folders, tmp_path):
    key, certificate, token = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "token"
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", *options, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    token.write_text("secret\n")
    files = ["--token-file", token, "--tls-certificate", certificate, "--tls-key", key]
    model = shutil.copytree(toy_folders.model, tmp_path / "model")
    (model / "demo.json").write_text('{"bare_words": true}')
    server = start(replace(toy_folders, model=model), "--port", 0, *files)
    try:
        url = re.search(r"https://localhost:\d+", server.stdout.readline())[0]
        with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=certificate)) as client:
            assert client.get("/health").json() == {"status": "ok", "model": "model"}
            assert client.get("/v1/models").status_code == 401
            headers = {"authorization": "Bearer secret"}
            assert client.get("/v1/models", headers=headers).status_code == 200
            assert client.get("/demo", headers=headers).json()["bare_words"]
    finally:
        server.send_signal(signal.SIGINT)  # as Ctrl-C does
        errors = server.communicate(timeout=20)[1]
    assert server.returncode == 0 and "Traceback" not in errors


@pytest.mark.parametrize("token", ["", "a/b==", "two words", "two\nlines", "名"])
def test_a_token_that_browsers_cannot_send_is_refused(toy_folders, tmp_path, token):
    (tmp_path / "token").write_text(token, encoding="utf-8")
    _, errors = (server := start(toy_folders, "--token-file", tmp_path / "token")).communicate(timeout=60)
    assert server.returncode == 2 and errors.count("\n") == 1
    assert "token must be one word of letters, digits and -._~" in errors


@pytest.mark.parametrize(
    "options, host",
    [
        ([], "localhost"),
        (["--host", "0.0.0.0"], "localhost"),
        (["--host", "::", "--allow-host", "my.name", "10.0.0.1"], "my.name"),
        (["--host", "::1"], "[::1]"),
        (["--host", "10.0.0.1"], "10.0.0.1"),
    ],
)
def test_the_page_has_an_address_that_browsers_open(options, host):
    assert page_host(parse_arguments(options)) == host


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tls-key", "key.pem"], "--tls-certificate and --tls-key go together, got one of them"),
        (["--token-file", "nothing"], "nothing: no such file"),
        (["--max-streams", "0"], "must be above 0, got 0"),
        (["--log-content"], "--log-content needs --log-json"),
        (["--port", "70000"], "must be at least 0 and at most 65535, got 70000"),
    ],
)
def test_wrong_options_get_one_line(toy_folders, options, message):
    _, errors = (server := start(toy_folders, *options)).communicate(timeout=60)
    assert server.returncode == 2 and errors.count("\n") == 1 and message in errors
