"""A server in a thread, on a port of this machine."""

import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from openai import OpenAI

from vita_audio.serve.app import create_app
from vita_audio.serve.connections import server_config
from vita_audio.serve.service import Service
from vita_audio.serve.settings import Limits


@dataclass(frozen=True)
class Server:
    port: int
    service: Service
    name: str = "toy"

    @property
    def url(self):
        return f"http://localhost:{self.port}"

    @property
    def client(self):
        return OpenAI(api_key="none", base_url=f"{self.url}/v1", max_retries=0)


@contextmanager
def serve(speech_lm, *, limits=None, demo=None, log_content=False, port=0, routes=None, **options):
    """Run a server of one model, or of several by name, in a thread.

    Args:
        demo: What is known about the first model.
        routes: Functions that answer GET requests, by their paths.
        options: As in `create_app`.
    """
    models = speech_lm if isinstance(speech_lm, dict) else {"toy": speech_lm}
    demos = {next(iter(models)): demo} if demo else None
    service = Service(models, limits or Limits(max_new_tokens=40), demos=demos, log_content=log_content)
    app = create_app(service, **options)
    for path, answer in (routes or {}).items():
        app.get(path)(answer)
    config = server_config(app, service, port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Server(server.servers[0].sockets[0].getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        assert not thread.is_alive()
