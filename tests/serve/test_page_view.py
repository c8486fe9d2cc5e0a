"""What the page looks like and how it is used without a mouse; its tab for files."""

import pytest
from page_browser import SPEECH, answer_of, ask, needs_chromium, opened, wait_for
from toy_server import serve

from vita_audio.serve.demo import Demo, load_demo

pytestmark = needs_chromium

# The texts that do not stand out from what is behind them by 4.5 : 1 (WCAG AA).
LOW_CONTRAST = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = channels(color).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return channels(color)[3] === 0 ? behind(element.parentElement) : color;
  };
  const ratio = (element) => {
    const [dark, light] = [getComputedStyle(element).color, behind(element)].map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
  return [...document.body.querySelectorAll("*")]
    .filter((element) => element.checkVisibility() && hasText(element) && element.tagName !== "OPTION")
    .filter((element) => ratio(element) < 4.5)
    .map((element) => `${element.outerHTML} ${ratio(element)}`);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(server, chromium, scheme):
    with opened(chromium, server, color_scheme=scheme) as page:
        ask(page)
        answer_of(page)
        wait_for(page, "ready")
        page.evaluate("document.querySelector('#error').hidden = false")
        assert page.evaluate(LOW_CONTRAST) == []
        page.click("#tab-files")
        assert page.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_start_screen_shows_all_of_its_text(speech_lm, demo_model, chromium, language):
    script = """[...document.querySelectorAll("#log, #welcome p, #examples")].map((it) => {
      const { top, bottom } = it.getBoundingClientRect();
      return [top, bottom, it.scrollHeight - it.clientHeight];
    })"""
    with serve(speech_lm, demo=load_demo(demo_model)) as server, opened(chromium, server) as page:
        page.select_option("#language", language)
        page.wait_for_selector("#examples button >> nth=9")
        for width, height in [(1100, 760), (1280, 800), (1366, 650), (1536, 730), (360, 740)]:
            page.set_viewport_size({"width": width, "height": height})
            (top, bottom, cut), domain, how_to, (begin, end, _) = page.evaluate(script)
            assert cut <= 0 and top <= domain[0] and how_to[1] <= bottom <= begin
            assert end - begin >= 80  # two lines of questions
            assert page.locator("#microphone").bounding_box()["y"] > end


def test_a_model_without_system_prompts_is_offered_none(speech_lm, chromium):
    for demo in (Demo(), Demo(system_prompt=False)):
        with serve(speech_lm, demo=demo) as server, opened(chromium, server) as page:
            page.wait_for_selector("#examples button")
            assert page.is_visible("#plan") and page.is_visible("#instructions") == demo.system_prompt


def test_the_page_fits_a_phone(server, chromium):
    with opened(chromium, server, viewport={"width": 360, "height": 740}) as page:
        page.wait_for_selector("#examples button")
        for before in (True, False):
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert page.locator("#microphone").bounding_box()["y"] < 700  # on the first screen
            if before:
                ask(page)
                answer_of(page)
        page.click("#tab-files")
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_every_control_is_reached_by_the_keyboard(server, chromium):
    with opened(chromium, server) as page:
        page.wait_for_selector("#examples button >> nth=9")
        name = "document.activeElement.id || document.activeElement.innerText || document.activeElement.value"
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(page.evaluate(name))
        examples = page.locator("#examples button").all_inner_texts()
        controls = ["tab-talk", "language", "theme", "log", *examples, "microphone", "hands-free", "text", "Send"]
        controls += ["instructions", "plan", "acceptance", "restart", "download"]
        places = [reached.index(control) for control in controls]
        assert places == sorted(places) and reached.count("tab-talk") > 1  # in order, and around


def test_a_screen_reader_hears_each_message_once(server, chromium):
    with opened(chromium, server) as page:
        page.evaluate(
            "window.said = []; new MutationObserver(() => said.push(document.querySelector('#announcer').textContent))"
            ".observe(document.querySelector('#announcer'), { childList: true })"
        )
        ask(page)
        text = answer_of(page)["text"].strip()
        assert page.evaluate("said") == [f"Model: {text}"]


def test_languages_themes_and_names_for_screen_readers(server, chromium):
    with opened(chromium, server) as page:
        page.select_option("#language", "zh")
        assert page.inner_text("#microphone") == "打开麦克风" and page.get_attribute("html", "lang") == "zh"
        page.reload()
        assert page.inner_text("#tab-files") == "文件"
        page.click("#theme")
        first = page.get_attribute("html", "data-theme")
        page.click("#theme")
        assert {first, page.get_attribute("html", "data-theme")} == {"light", "dark"}
        for control in page.locator("button, input, select, textarea").all():
            label = control.evaluate(
                "it => it.ariaLabel || it.innerText || it.labels?.[0]?.innerText || it.labels?.[0]?.textContent"
            )
            assert label and label.strip(), control.evaluate("it => it.outerHTML")


def test_both_languages_have_all_texts(server, chromium):
    with opened(chromium, server) as page:
        strings = page.evaluate("import('/static/strings.js').then((module) => module.STRINGS)")
        used = page.evaluate("[...document.querySelectorAll('[data-text]')].map((it) => it.dataset.text)")
        used += page.evaluate("[...document.querySelectorAll('[data-label]')].map((it) => it.dataset.label)")
        assert strings["en"].keys() == strings["zh"].keys() >= set(used)


def test_files(server, chromium):
    with opened(chromium, server) as page:
        page.focus("#tab-talk")
        page.keyboard.press("ArrowRight")
        page.click("#run")
        assert page.inner_text("#error-text") == "Choose or record a sound first."
        page.set_input_files("#file-sound input", SPEECH)
        page.wait_for_selector("#file-mel canvas")
        assert page.is_visible("#file-sound audio")
        for task, has_sound in (("recognition", False), ("question", True), ("synthesis", True)):
            page.locator("label", has=page.locator(f"[name=task][value={task}]")).click()
            if task == "synthesis":
                page.fill("#words", "seven")
            page.click("#run")
            page.wait_for_selector("#run:enabled")
            assert page.is_visible("#result-audio") == page.is_visible("#result-mel") == has_sound
            assert page.is_hidden("#error") and "Working" not in page.inner_text("#result-text")
        page.fill("#words", "hello")  # which the model does not end
        page.click("#run")
        page.locator("#error", has_text="The speech broke off before the end of the text.").wait_for()


def test_a_file_that_is_not_audio_is_reported(server, chromium):
    with opened(chromium, server) as page:
        page.click("#tab-files")
        page.set_input_files("#file-sound input", __file__)
        page.locator("#error", has_text="cannot read this as audio: test_page_view.py").wait_for()


def test_quiet_speech_shows_and_silence_does_not(server, chromium):
    script = """async (level) => {
      const canvas = document.querySelector("#levels");
      const { setLevel } = await import("/static/levels.js");
      setLevel(0, level);
      canvas.width = 0; // until it is painted
      while (!canvas.width) await new Promise(requestAnimationFrame);
      const { data } = canvas.getContext("2d").getImageData(0, Math.round(canvas.height / 4), canvas.width, 1);
      return data.filter((value, i) => i % 4 === 3 && value).length / canvas.width;
    }"""
    with opened(chromium, server, reduced_motion="reduce") as page:
        shown = [page.evaluate(script, level) for level in (0.0003, 0.004, 0.25)]
    assert shown[0] == 0 and 0.2 < shown[1] < 0.3 and shown[2] > 0.99
