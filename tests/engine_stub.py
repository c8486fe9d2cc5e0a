"""vLLM's HTTP interface in front of a tiny model of our own, for an environment that has no vLLM."""

from __future__ import annotations

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import torch

MAX_LENGTH = 300


class StubEngine(ThreadingHTTPServer):
    """Answers greedily.

    Attributes:
        requests: The fields of all requests.
        left: Set when a client has left within its answer.
        may_go_on: Answers wait for it after three events, which are enough for a first chunk.
        ends_after: Number of events after which it breaks an answer off; None: never.
        error: Message that it sends in place of answers; None: none.
    """

    daemon_threads = True

    def __init__(self, model):
        super().__init__(("127.0.0.1", 0), Handler)
        self.model, self.requests = model, []
        self.left, self.may_go_on = threading.Event(), threading.Event()
        self.may_go_on.set()
        self.ends_after = self.error = None
        self.models = {"data": [{"id": "toy", "max_model_len": MAX_LENGTH}]}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send(self, status, fields):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(fields).encode())

    def do_GET(self):
        self.send(200, self.server.models)

    def do_POST(self):
        fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(fields)
        if self.server.error:
            self.send(400, {"error": {"message": self.server.error, "code": 400}})
            return
        self.send_response(200)
        self.end_headers()
        try:
            self.answer(fields)
        except ConnectionError:
            self.server.left.set()

    def answer(self, fields):
        """Write the events of an answer: one token in the first, two in the others, as an engine with drafts may."""
        options = {"eos_token_id": fields["stop_token_ids"], "max_new_tokens": fields["max_tokens"]}
        if "prompt_embeds" in fields:
            embeddings = torch.load(BytesIO(base64.b64decode(fields["prompt_embeds"])), weights_only=True)[None]
            options["inputs_embeds"] = embeddings
            prompt = torch.zeros(embeddings.shape[:2], dtype=torch.long)
        else:
            prompt = torch.tensor([fields["prompt"]])
        answer = self.server.model.generate(prompt, mtp_inference_mode="vanilla", do_sample=False, **options)
        ids = answer[0, prompt.shape[1] :].tolist()
        events = [ids[:1], *(ids[place : place + 2] for place in range(1, len(ids), 2))]
        for number, event in enumerate(events[: self.server.ends_after], start=1):
            data = json.dumps({"choices": [{"index": 0, "text": "", "token_ids": event}]})
            self.wfile.write(f"data: {data}\n\n".encode())
            self.wfile.flush()
            if number == 3:
                self.server.may_go_on.wait(timeout=60)
        if self.server.ends_after is None:
            self.wfile.write(b"data: [DONE]\n\n")


@contextmanager
def run_engine(model):
    """Run a StubEngine in a thread."""
    with StubEngine(model) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
