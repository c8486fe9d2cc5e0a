"""`python -m vita_audio.serve` as users start it."""

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from dataclasses import replace

import httpx2 as httpx
import pytest
from realtime_client import until
from server_process import start

from vita_audio.serve.__main__ import page_host, parse_arguments


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_server_with_tls_and_a_token(toy_folders, tmp_path):
    key, certificate, token = tmp_path / "key.pem", tmp_path / "certificate.pem", tmp_path / "token"
    options = ["-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", *options, "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    token.write_text("secret\n")
    (tmp_path / "browser").write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    (tmp_path / "browser").chmod(0o755)
    files = ["--token-file", token, "--tls-certificate", certificate, "--tls-key", key]
    model = shutil.copytree(toy_folders.model, tmp_path / "model")
    (model / "demo.json").write_text('{"bare_words": true}')
    environment = os.environ | {"BROWSER": f"{tmp_path}/browser %s", "DISPLAY": ":0"}
    server = start(replace(toy_folders, model=model), "--port", 0, "--open-page", *files, env=environment)
    try:
        line = server.stdout.readline()
        url = re.search(r"https://localhost:\d+", line)[0]
        until(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text() == f"{url}/#token=secret\n")
        assert "secret" not in line
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


def test_a_port_in_use_is_reported_before_the_model_is_loaded(toy_folders, tmp_path):
    (tmp_path / "config.json").write_text("{}")  # no model: loading it fails
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        _, errors = (server := start(toy_folders, "--port", port, model=tmp_path)).communicate(timeout=60)
    assert server.returncode == 2 and errors.count("\n") == 1
    assert f"port {port} is in use" in errors and "--port" in errors


def test_an_address_that_is_not_this_machines_is_reported(toy_folders, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    _, errors = (server := start(toy_folders, "--host", "203.0.113.1", model=tmp_path)).communicate(timeout=60)
    assert server.returncode == 2 and errors.count("\n") == 1 and "see --host and --port" in errors


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
