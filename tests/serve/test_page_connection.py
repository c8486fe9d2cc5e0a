"""The page when the network, the server, the browser or another tab does something unexpected."""

import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest
from page_browser import answer_of, ask, browser, needs_chromium, opened, wait_for
from toy_server import serve

from vita_audio.serve.settings import Limits

pytestmark = needs_chromium
SHORT, LONG = Limits(max_new_tokens=10), Limits(max_new_tokens=400)


class Network:
    """Carries the bytes of connections to a port, until it is cut."""

    def __init__(self, port, own_port=0):
        self._target, self._sockets = port, []
        self._listener = socket.create_server(("127.0.0.1", own_port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source, target):
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self):
        for one in [self._listener, *self._sockets]:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@contextmanager
def network(port, own_port=0):
    network = Network(port, own_port)
    try:
        yield network
    finally:
        network.cut()


def test_the_page_connects_again_after_the_network_was_cut(speech_lm, chromium):
    with serve(speech_lm, limits=LONG) as server:
        with network(server.port) as first:
            url = f"http://localhost:{first.port}"
            with opened(chromium, server, url=url) as page:
                ask(page)
                wait_for(page, "speaking")
                first.cut()
                wait_for(page, "off")
                assert "No connection" in page.inner_text("#status")
                ask(page, "are you there")
                assert "does not answer" in page.inner_text("#error") and page.input_value("#text") == "are you there"
                with network(server.port, first.port):
                    wait_for(page, "ready")
                    assert page.is_hidden("#error") and "New conversation" in page.inner_text("#log")
                    page.press("#text", "Enter")
                    page.locator(".message.assistant").nth(1).wait_for()


def test_the_page_connects_again_when_the_server_is_back(speech_lm, chromium):
    with serve(speech_lm, limits=SHORT) as server:
        context = chromium.new_context()
        page = context.new_page()
        page.goto(server.url)
        wait_for(page, "ready")
        ask(page)
        answer_of(page)
    wait_for(page, "off")
    with serve(speech_lm, limits=SHORT, port=server.port):
        wait_for(page, "ready")
        ask(page, "hello again")
        assert answer_of(page, 1)["text"]
        context.close()


def test_reload_in_mid_answer_and_two_tabs(speech_lm, chromium):
    with serve(speech_lm, limits=LONG) as server, opened(chromium, server) as page:
        ask(page)
        wait_for(page, "speaking")
        page.reload()
        wait_for(page, "ready")
        with opened(chromium, server) as other:
            for tab in (page, other):
                ask(tab)
            for tab in (page, other):
                wait_for(tab, "speaking")
                assert tab.locator(".message").count() == 2
            assert server.service.num_sessions == 2


def test_a_page_that_finds_no_place_asks_ever_more_slowly(speech_lm, chromium):
    with serve(speech_lm, limits=Limits(max_sessions=1)) as server, opened(chromium, server):
        with chromium.new_context(locale="zh-CN") as context:
            page, times = context.new_page(), []
            page.on("websocket", lambda socket: times.append(time.monotonic()))
            page.goto(server.url)
            page.locator("#error", has_text="服务器会话过多").wait_for()
            while len(times) < 4:
                page.wait_for_timeout(100)
    assert times[3] - times[2] > 1  # the first delays are 0.5 and 1 s


def test_a_page_without_the_token_says_what_to_do(speech_lm, chromium):
    with serve(speech_lm, token="secret") as server:
        with chromium.new_context() as context:
            page = context.new_page()
            page.goto(server.url)
            page.locator("#error", has_text="Open the page with #token=TOKEN after its address").wait_for()
        with opened(chromium, server, url=f"{server.url}/#token=secret") as page:
            ask(page)
            assert answer_of(page)["text"] and page.is_hidden("#error")


def test_an_idle_page_waits_for_its_user(speech_lm, chromium):
    with serve(speech_lm, limits=Limits(idle_seconds=2)) as server, opened(chromium, server) as page:
        wait_for(page, "paused")
        assert page.is_hidden("#error")
        page.mouse.move(100, 100)
        wait_for(page, "ready")


KEEP_STREAM = """() => {
  const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
  navigator.mediaDevices.getUserMedia = async (options) => (window.stream = await open(options));
}"""


def test_a_microphone_that_is_unplugged_is_reported(server, chromium):
    with opened(chromium, server) as page:
        page.evaluate(KEEP_STREAM)
        for _ in range(2):  # it can be opened again
            page.click("#microphone")
            page.wait_for_selector("#microphone[aria-pressed=true]")
            page.evaluate("stream.getTracks()[0].dispatchEvent(new Event('ended'))")
            page.locator("#error", has_text="No microphone was found").wait_for()
            assert page.get_attribute("#microphone", "aria-pressed") == "false"


@pytest.mark.parametrize("button", ["#microphone", "#voice .record"])
def test_a_refused_microphone_is_reported(server, playwright, button):
    with browser(playwright, allows_microphone=False) as chromium, opened(chromium, server) as page:
        page.click(button)
        page.locator("#error", has_text="Allow it in the site settings").wait_for()
        page.click("#error-close")
        ask(page)
        assert answer_of(page)["text"] and page.is_hidden("#error")
