"""The page in a real Chromium: what a person does, by mouse, by keyboard and on a phone."""

import shutil
import threading
import time

import pytest

from marvel_jax.serving import server
from tests.serving import fakes

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives a browser, is not installed"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SECONDS = 60_000  # on a busy machine, in milliseconds; what is there is not waited for


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A real uvicorn on a fake collection, in a thread."""
    import uvicorn

    from marvel_jax.serving.app import create_app

    bound = server.listen("127.0.0.1", 0)
    app = create_app(fakes.fruit_service(tmp_path_factory.mktemp("fruit")))
    running = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield server.address(bound)
    running.should_exit = True
    thread.join(30)
    bound.close()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=SECONDS)
        yield opened
        opened.close()


@pytest.fixture
def page(browser, address):
    """A fresh page; at its end nothing may have gone wrong and nobody else been asked."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(SECONDS)
    wrong, asked = [], []

    def note(line):  # a refusal is an error to the console, and is told on the page
        if line.type == "error" and "status of 422" not in line.text:
            wrong.append(line.text)

    opened.on("console", note)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(address)
    opened.locator("body:not(.starting)").wait_for()
    yield opened
    assert wrong == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:" + address))] == []
    context.close()


def search(page, words):
    page.locator("#text").fill(words)
    page.keyboard.press("Enter")
    done(page)


def done(page):
    # By selectors: `wait_for_function` evaluates text, which the page's policy forbids.
    page.locator("body:not(.busy) #status:has-text('result')").wait_for()


def shown(page):
    return page.locator(".hits .hit").evaluate_all("all => all.map(one => one.dataset.id)")


def drop(page, content, *, name="a.png", media_type="image/png"):
    page.evaluate(
        """([bytes, name, type]) => {
            const file = new File([new Uint8Array(bytes)], name, { type });
            const moved = new DataTransfer();
            moved.items.add(file);
            for (const one of ["dragenter", "dragover", "drop"]) {
                document.body.dispatchEvent(
                    new DragEvent(one, { dataTransfer: moved, bubbles: true, cancelable: true })
                );
            }
        }""",
        [list(content), name, media_type],
    )


def test_type_see_more_like_this_and_reload(page):
    search(page, "a green lime")
    assert shown(page)[0] == "text/2"
    page.locator(".hit[data-id='a/lime.png'] .like").click()
    page.wait_for_url("**like=a%2Flime.png**")
    done(page)
    found = shown(page)
    assert found and "a/lime.png" not in found
    page.reload()
    done(page)
    assert shown(page) == found and page.locator(".chip").count() == 1
    page.go_back()
    playwright.expect(page.locator("#text")).to_have_value("a green lime", timeout=SECONDS)


def test_a_dropped_picture_is_searched_and_its_copies_unfold(page):
    drop(page, fakes.picture((205, 25, 25)))
    done(page)
    assert shown(page)[0].startswith("a/apple")
    assert "cannot hold your picture" in page.locator("#status").inner_text()
    page.locator(".copies summary").first.click()
    assert page.locator(".copies li").first.is_visible()
    page.locator(".face img").first.evaluate("one => one.decode()")


def test_kind_rerank_and_two_instructions_are_kept_in_the_address(page):
    page.locator("input[value='text']").check(force=True)
    page.locator("#rerank").check()
    page.locator("#beside").check()
    page.locator("#instruction2").fill("Another one.")
    search(page, "red apple")
    assert page.locator(".column").count() == 2
    assert page.locator("h2").all_inner_texts() == ["From text find text.", "Another one."]
    assert page.locator(".move.up").count() and page.locator(".chance").count()
    before = shown(page)
    page.reload()
    done(page)
    assert shown(page) == before and page.locator(".column").count() == 2


def test_the_keyboard_alone_does_it(page):
    page.locator("#go").focus()
    page.keyboard.press("/")
    page.keyboard.type("blue water")
    page.keyboard.press("Enter")
    done(page)
    page.keyboard.press("ArrowDown")
    focused = "document.activeElement.dataset.id"
    first, second = shown(page)[:2]
    assert page.evaluate(focused) == first
    page.keyboard.press("ArrowRight")
    assert page.evaluate(focused) == second
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "like"
    page.keyboard.press("Enter")
    page.wait_for_url("**like=**")


def test_a_picture_is_enlarged_by_the_keyboard_alone(page):
    search(page, "red apple")
    page.locator(".hit[data-id='a/lime.png']").focus()
    page.keyboard.press("Enter")
    page.locator("#large[open] img").wait_for()
    assert "size=large" in page.locator("#large img").get_attribute("src")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.id") == "a/lime.png"
    page.locator(".hit[data-id='text/2']").focus()
    page.keyboard.press("Enter")
    assert page.locator("#large[open]").count() == 0


def test_an_answer_that_comes_late_leaves_the_start_page_alone(page, address):
    held = []
    page.route("**/api/search", lambda route: held.append(route))
    page.locator("#text").fill("a green lime")
    page.keyboard.press("Enter")
    page.locator("body.busy").wait_for()
    page.locator("#text").fill("")
    page.keyboard.press("Enter")
    page.locator(".welcome").wait_for()
    assert page.locator("body.busy").count() == 0
    with page.expect_response("**/api/search"):
        held[0].continue_()
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.url == address and page.locator(".hits").count() == 0
    assert page.locator(".welcome").count() == 1 and page.locator("#status").inner_text() == ""


def test_back_twice_quickly_shows_the_last_address_only(page):
    search(page, "blue water")
    page.locator(".hit[data-id='b/sea.png'] .like").click()
    done(page)
    search(page, "a green lime")
    held = []
    page.route("**/api/item?*", lambda route: held.append(route))
    page.go_back()  # to "like", whose entry is asked for
    while not held:
        page.wait_for_timeout(20)
    page.go_back()
    playwright.expect(page.locator("#text")).to_have_value("blue water", timeout=SECONDS)
    done(page)
    before = shown(page)
    with page.expect_response("**/api/item?*"):
        held[0].continue_()
    page.wait_for_timeout(200)
    assert page.locator(".chip").count() == 0 and shown(page) == before
    assert page.locator("#text").input_value() == "blue water"


def test_what_is_no_picture_is_refused_and_text_may_be_dropped(page):
    drop(page, b"words", name="a.txt", media_type="text/plain")
    page.wait_for_selector("#problem:not([hidden])")
    assert "a.txt" in page.locator("#problem").inner_text()
    assert page.locator(".chip").count() == 0
    page.locator("#file").set_input_files(
        {"name": "b.png", "mimeType": "image/png", "buffer": fakes.picture((205, 25, 25))}
    )
    done(page)
    assert shown(page)[0].startswith("a/apple") and not page.locator("#problem").is_visible()
    prevented = page.evaluate(
        """() => ["text/plain", "file"].map(kind => {
            const moved = new DataTransfer();
            if (kind === "file") moved.items.add(new File([], "c.txt"));
            else moved.setData(kind, "words");
            const options = { dataTransfer: moved, bubbles: true, cancelable: true };
            return !document.body.dispatchEvent(new DragEvent("drop", options));
        })"""
    )
    assert prevented == [False, True]


def test_two_instructions_are_not_compared_where_nothing_reads_them(page):
    page.locator("#beside").check()
    search(page, "red apple")
    assert page.locator(".column").count() == 2
    page.locator(".hit[data-id='a/lime.png'] .like").first.click()
    page.wait_for_url("**like=**")
    done(page)
    assert page.locator(".column").count() == 1 and page.locator(".hits h2").count() == 0


def test_a_picture_that_has_gone_is_told(page):
    def gone(route):
        answer = route.fetch().json()
        for hit in answer["hits"]:
            hit["image"], hit["gone"] = False, hit["image"]
        route.fulfill(json=answer)

    page.route("**/api/search", gone)
    search(page, "a green lime")
    assert "gone" in page.locator(".hit[data-id='a/lime.png'] .face").inner_text()
    assert "gone" not in page.locator(".hit[data-id='text/2'] .face").inner_text()


def test_markup_of_a_corpus_is_shown_as_text(page):
    search(page, "<script>window.harmed = true</script>")
    card = page.locator(".hit[data-id='text/3'] .text")
    assert card.inner_text() == {row[0]: row[1] for row in fakes.FRUIT}["text/3"]
    assert page.evaluate("window.harmed") is None
    assert page.locator(".hit[data-id='text/4'] .text").get_attribute("dir") == "auto"


def test_a_refusal_is_told_on_the_page(page, address):
    page.goto(address + "?q=apple&k=100")
    done(page)
    page.locator("#text").fill("x" * 20_001)
    with page.expect_response("**/api/search") as answered:
        page.keyboard.press("Enter")
    assert answered.value.status == 422
    page.wait_for_selector("#problem:not([hidden])")
    assert "20,000" in page.locator("#problem").inner_text()


def test_a_phone_shows_it_without_scrolling_sideways(page):
    page.set_viewport_size({"width": 360, "height": 740})
    search(page, "red " + "very" * 30)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 360
    page.locator("#more summary").click()
    page.locator("#beside").check()
    done(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
