"""Serve a model: a page to talk to it, and the interface of OpenAI's clients.

    python -m vita_audio.serve --model outputs/quickstart/stage4

Then open http://localhost:8000.
"""

from __future__ import annotations

import argparse
import errno
import gc
import os
import re
import socket
import sys
import webbrowser
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from vita_audio.command_line import (
    OneLineParser,
    add_model_options,
    check_files,
    check_model_folder,
    chosen_models,
    in_range,
    load_audio_tokenizer,
    load_speech_lms,
    quieten_transformers,
)
from vita_audio.errors import one_line_errors
from vita_audio.serve.settings import Limits

if TYPE_CHECKING:
    from vita_audio.inference.pipeline import SpeechLM

LOCAL, ANY = "127.0.0.1", ("0.0.0.0", "::")  # addresses to listen on
# What oneDNN keeps for the shapes of inputs that it has seen; 1,024 by default, which answers of varying length fill
# slowly, as if memory leaked. It is read at the first convolution, and torch has no function for it.
MAX_PRIMITIVES = "256"
TOKEN = re.compile(r"[\w.~-]+", re.ASCII)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Raises: SystemExit for wrong arguments."""
    parser = OneLineParser("python -m vita_audio.serve", description=__doc__)
    add = parser.add_argument
    add_model_options(parser, several_adapters=True)
    add("--backend", choices=("transformers", "vllm"), default="transformers", help="what runs the language model")
    add("--engine-url", help="address of the vLLM server, with --backend vllm; see scripts/serve_vllm.sh")
    add("--host", default=LOCAL, help="address to listen on; 0.0.0.0 is every one of this machine")
    add("--port", type=in_range(int, minimum=0, maximum=65535), default=8000, help="port; 0 is any free one")
    add("--allow-host", nargs="+", default=[], metavar="NAME", help="names besides localhost that clients use")
    add("--token-file", type=Path, help="file with the token that clients must send (default: none needed)")
    add("--tls-certificate", type=Path, help="certificate, PEM; browsers need TLS for a microphone on another machine")
    add("--tls-key", type=Path, help="its key, PEM")
    add("--open-page", action="store_true", help="open the page in the browser, if this machine has a screen")
    add("--log-json", action="store_true", help="log each answer and error to standard error, as a line of JSON")
    add("--log-content", action="store_true", help="with --log-json: also the texts of questions and answers")
    group = parser.add_argument_group("limits")
    for field in fields(Limits):
        kind = type(field.default)
        name = "--" + field.name.replace("_", "-")
        group.add_argument(name, type=in_range(kind, above=0), default=field.default, help=field.metadata["help"])
    options = parser.parse_args(arguments)
    if (options.tls_certificate is None) != (options.tls_key is None):
        parser.error("--tls-certificate and --tls-key go together, got one of them")
    if options.log_content and not options.log_json:
        parser.error("--log-content needs --log-json")
    if (options.backend == "vllm") != (options.engine_url is not None):
        parser.error("--backend vllm and --engine-url go together, got one of them")
    for name in ("device_map", "dtype", "quantize", "attn_implementation"):
        if options.backend == "vllm" and getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} is for --backend transformers; give it to the engine")
    if options.backend == "vllm" and options.adapter:
        parser.error("--adapter is for --backend transformers; merge it with tools/export_checkpoint.py --merge")
    return options


def run(options: argparse.Namespace) -> None:
    """Load the model and serve it until the process is ended."""
    check_model_folder(options.model)
    check_files(options.token_file, options.tls_certificate, options.tls_key)
    token = read_token(options.token_file)
    listener = listen(options.host, options.port)  # before the model is loaded, which takes long

    import uvicorn

    from vita_audio.serve.app import create_app
    from vita_audio.serve.connections import server_config
    from vita_audio.serve.demo import load_demos
    from vita_audio.serve.guard import LOCAL_HOSTS
    from vita_audio.serve.records import log_as_json
    from vita_audio.serve.service import Service
    from vita_audio.serve.turns import load_vad

    if options.log_json:
        log_as_json()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", MAX_PRIMITIVES)
    quieten_transformers()
    load_vad()  # so that a missing package is reported now
    demos = load_demos(options.model, chosen_models(options))
    models = load_models(options)
    limits = Limits(**{field.name: getattr(options, field.name) for field in fields(Limits)})
    service = Service(models, limits, demos=demos, log_content=options.log_content)
    app = create_app(service, hosts=[*LOCAL_HOSTS, options.host, *options.allow_host], token=token)
    config = server_config(
        app,
        service,
        log_level="warning",
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
        **({"log_config": None} if options.log_json else {}),
    )
    # Sessions and answers end in reference cycles, which hold their caches until a full collection. By default it comes
    # after minutes, and reads all objects of the start.
    gc.collect()
    gc.freeze()
    gc.collect()  # sets the number of objects that its rule compares with
    gc.set_threshold(700, 10, 1)
    url = f"{'https' if options.tls_key else 'http'}://{page_host(options)}:{listener.getsockname()[1]}"
    print(f"talk to {options.model}: {url}", flush=True)
    if options.open_page and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()):
        # without a screen it would start a browser for the terminal
        webbrowser.open(url if token is None else f"{url}/#token={token}")
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has shut down
        uvicorn.Server(config).run([listener])


def read_token(path: Path | None) -> str | None:
    """Read the token of a file, if there is one. Raises: ValueError for one that browsers cannot send."""
    if path is None:
        return None
    token = path.read_text(encoding="utf-8").strip()
    if not TOKEN.fullmatch(token):
        raise ValueError(f"{path} must be one word of letters, digits and -._~; try openssl rand -hex 16")
    return token


def listen(host: str, port: int) -> socket.socket:
    """Return a socket for the server; clients that connect before it is ready wait. Raises: OSError with a remedy."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # of a server that has ended
    try:
        listener.bind((host, port))
        listener.listen()  # only this keeps other programs away from the port
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise OSError(f"port {port} is in use, perhaps by another server; give another one with --port") from error
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from error
    return listener


def page_host(options: argparse.Namespace) -> str:
    """Return a name of the server as it stands in the address of its page."""
    name = options.host
    if name in ANY and options.allow_host:
        name = options.allow_host[0]
    elif name in (LOCAL, *ANY):
        name = "localhost"
    return f"[{name}]" if ":" in name else name


def load_models(options: argparse.Namespace) -> dict[str, SpeechLM]:
    """Load the models by name, or with --backend vllm connect to the engine that serves one."""
    audio_tokenizer = load_audio_tokenizer(options)
    if options.backend == "transformers":
        return load_speech_lms(options, audio_tokenizer)
    from vita_audio.inference.engine import EngineLM

    speech_lm = EngineLM.connect(
        options.engine_url,
        options.model,
        audio_tokenizer,
        audio_model=options.audio_model_path,
        offline=options.offline,
        any_audio_tokenizer=options.any_audio_tokenizer,
    )
    return dict.fromkeys(chosen_models(options), speech_lm)


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors("vita_audio.serve"):
        run(options)


if __name__ == "__main__":
    main()
