"""Catches: a page that hides what is stale, claims what was not run, or does not fit a phone."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evidence import key as keys
from evidence import store
from patchset import series

pytest.importorskip("matplotlib", reason="ci/requirements-tools.txt is not installed")
pytest.importorskip("jinja2", reason="ci/requirements-tools.txt is not installed")

from tools import plots, report, tables  # only where it is

# One worker makes the page, and starts the browser.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("report")]
HOUSE = Path(__file__).resolve().parents[2]
TOKENS = (1, 64, 1024, 8192)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1440, 1000), (390, 844)


def invented_bench(slug, works):
    """A file as bench/run.py writes it, with times of nobody's device."""
    rows = [
        {
            "work": work,
            "model": model,
            "tp": tp,
            "tokens": tokens,
            "cache_dtype": "fp8",
            "launches": 1.0,
            "ours_us": max(1.3, tokens * 0.004 / tp),
            "upstream_us": max(2.2, tokens * 0.02 / tp),
            "eager_us": None,
            "floor_us": tokens * 0.003 / tp,
            "empty_us": 0.68,
        }
        for work in works
        for model in ("gpt-oss-120b",)
        for tp in (1, 8)
        for tokens in TOKENS
    ]
    key = keys.key("Invented GPU", keys.of_bench(slug))
    return {"key": key | {"bandwidth_tb_s": 4.0, "driver": "1.2"}}, rows


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of what the page is made from, with invented measurements beside the real ones."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("patchset", "patches", "overlay", "tools", "bench", "ci"):
        shutil.copytree(HOUSE / folder, house / folder)
    for folder in ("kernels", "regression", "engine"):
        shutil.copytree(HOUSE / "tests" / folder, house / "tests" / folder)
    (house / "evidence").mkdir()
    for file in (HOUSE / "evidence").glob("*.py"):
        shutil.copy(file, house / "evidence")
    for kept in ("aot", "tilelang", "launches", "seeded-faults", "tests"):
        for file in (HOUSE / "evidence").glob(f"{kept}.*"):
            shutil.copy(file, house / "evidence")
    for slug, works in (
        ("rope_kv_store", ("all layers", "sliding window")),
        ("layernorm", ("k_norm",)),
    ):
        store.write(house / f"evidence/{slug}.Invented-GPU.jsonl", *invented_bench(slug, works))
    release = series.load(HOUSE).releases["0.5.10.post1"]
    result = {
        "verdict": "PASS",
        "message": "not worse than pristine by 1.5 points",
        "configuration": {
            "release": release.name,
            "model": "openai/gpt-oss-120b",
            "arch": "gfx942",
            "slugs": ["rope-kv-store"],
            "digest": release.digest,
        },
    }
    (house / "evidence/gsm8k.gpt-oss-120b.Invented-GPU.json").write_text(json.dumps(result))
    missed = {
        "model": "glm-5",
        "fault": "a fault that nobody found",
        "slugs": ["indexer"],
        "release": release.name,
        "arch": "gfx942",
        "questions": 24,
        "pristine": 1.0,
        "patched": 0.96,
        "verdict": "INCONCLUSIVE",
        "expected": "REGRESSION",
        "digest": keys.digest_of(["indexer"]),
        "judged_by": keys.digest(keys.of_served()),
    }
    store.write(house / "evidence/regression-faults.jsonl", {}, [missed])
    return house


@pytest.fixture(scope="module", autouse=True)
def _each_plot_is_drawn_once():
    """Drawing is what a page takes its time for, and no test changes what is drawn."""
    draw, drawn = plots.time_against_tokens, {}

    def once(rows, title):
        key = json.dumps([rows, title])
        if key not in drawn:
            drawn[key] = draw(rows, title)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "time_against_tokens", once)
        yield


@pytest.fixture
def other(house, tmp_path):
    """A copy of it, to change."""
    return Path(shutil.copytree(house, tmp_path / "house"))


def made(house, output):
    done = subprocess.run(
        [sys.executable, house / "tools/report.py", "--output", output],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return (output / "index.html").read_text()


def test_a_place_that_is_no_folder_is_refused_with_what_helps(house, tmp_path):
    (tmp_path / "taken").write_text("")
    command = [sys.executable, house / "tools/report.py", "--output", tmp_path / "taken"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("report: --output ")
    assert "File exists; give a folder" in done.stderr


@pytest.fixture(scope="module")
def text(house):
    return report.page(house)


def row_of(text, release, slug):
    rows = re.findall(r"<tr>.*?</tr>", text.partition('id="matrix-table"')[2], re.S)
    return next(row for row in rows if f">{release}</td>" in row and f"<strong>{slug}<" in row)


def cell_of(row, column):
    return re.search(rf'<td data-label="{column}".*?</td>', row, re.S)[0]


def test_the_page_is_the_same_for_the_same_evidence_and_needs_nothing_else(house, text, tmp_path):
    assert made(house, tmp_path) == text
    assert not re.search(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert "url(" not in text.replace("url(#", "")
    assert "@import" not in text


def test_every_slug_of_every_release_has_a_row(text):
    for release in series.load(HOUSE).releases.values():
        for slug in release.patches:
            assert release.patches[slug].trailers["Numerics"].split("<")[0] in row_of(
                text, release.name, slug
            )


def test_what_was_not_run_is_not_claimed(text):
    assert "PASS" in row_of(text, "0.5.10.post1", "rope-kv-store")
    assert row_of(text, "0.5.10.post1", "indexer").count("not run") == 2


def test_a_fault_that_real_servers_did_not_show_is_marked(text):
    rows = re.findall(r"<tr>.*?</tr>", text.partition("two real servers")[2], re.S)
    row = next(row for row in rows if "a fault that nobody found" in row)
    assert '<span class="badge bad">INCONCLUSIVE' in row
    assert "stale" not in row


def test_tests_that_take_minutes_are_told_with_what_became_of_them(text, other):
    assert "Not run yet: <code>ci/test --long" in text
    row = {"layer": "regression", "subject": "end_to_end", "release": "any", "arch": "any"}
    row |= {"passed": 8, "skipped": 0, "selection": "long"}
    key = keys.key("cpu", keys.of_tests())
    store.write(other / "evidence/tests.cpu.jsonl", {"key": key}, [row])

    def told():
        rows = re.findall(r"<tr>.*?</tr>", report.page(other).partition("by themselves")[2], re.S)
        return next(row for row in rows if "regression/test_end_to_end.py" in row)

    assert '<span class="badge good">8</span>' in told()
    decide = other / "ci/regression/decide.py"
    decide.write_text(decide.read_text() + "\nCHANGED = 1\n")
    assert '<span class="badge old">8</span> <span class="badge old">stale</span>' in told()


def test_a_case_that_upstream_refuses_is_told_as_that(other):
    row = {"case": "a model", "release": "0.5.9", "arch": "gfx942", "slugs": ["layernorm"]}
    row |= {"pristine": None, "patched": 90, "changed": {}}
    store.write(other / "evidence/launches.jsonl", {}, [row])
    assert "refused → 90" in row_of(report.page(other), "0.5.9", "layernorm")


def test_the_estimate_is_marked_and_follows_the_bytes(text):
    assert "Estimates, not measurements" in text
    table = text.partition('<table id="layernorm-Invented-GPU">')[2]
    row = next(r for r in re.findall(r"<tr>.*?</tr>", table, re.S) if "<td>8192</td>" in r)
    floor = 8192 * 0.003  # microseconds at 4.0 TB/s
    estimates = re.findall(r'class="estimate">([\d.]+)<', row)
    assert estimates == [f"{floor * 4.0 / peak:.2f}" for peak in (5.3, 8.0)]


def test_products_that_take_longer_than_the_bytes_are_told_beside_them(other):
    path = other / "evidence/layernorm.Invented-GPU.jsonl"
    header, rows = store.read(path)
    store.write(path, header, [row | {"products_us": row["ours_us"] / 2.5} for row in rows])
    speed = cell_of(row_of(report.page(other), "0.5.10.post1", "layernorm"), "8192 tokens")
    assert "× floor</span><small>2.50 × products</small>" in speed


def test_a_floor_below_a_hundredth_is_not_shown_as_none(text):
    table = text.partition('<table id="layernorm-Invented-GPU">')[2]
    first = next(r for r in re.findall(r"<tr>.*?</tr>", table, re.S) if "<td>1</td>" in r)
    assert "<td>0.003</td>" in first


def test_evidence_goes_stale_with_its_kernel_and_is_marked(other):
    kernel = other / "overlay/sglang/srt/rocm_patches/layernorm_kernel.py"
    kernel.write_text(
        kernel.read_text().replace(
            "def _layernorm_kernel(", "def _layernorm_kernel(\n    other_ptr,"
        )
    )
    text = report.page(other)
    assert 'title="Invented-GPU">stale' in row_of(text, "0.5.10.post1", "layernorm")
    assert 'title="Invented-GPU">stale' not in row_of(text, "0.5.10.post1", "rope-kv-store")
    assert "stale" in cell_of(row_of(text, "0.5.10.post1", "layernorm"), "launches")
    proof = tables.proof(other, series.load(other)).splitlines()
    of_slug = next(row for row in proof if "`layernorm`" in row)
    assert "glm-5-bf16, gfx942: stale<br>" in of_slug
    # The comparison of servers was of the patch set as it was.
    verdict = cell_of(row_of(text, "0.5.10.post1", "rope-kv-store"), "accuracy")
    assert '<span class="badge none">PASS</span> <span class="badge old">stale</span>' in verdict


def test_a_verdict_says_of_which_model_and_chip_it_is(text):
    verdict = cell_of(row_of(text, "0.5.10.post1", "rope-kv-store"), "accuracy")
    assert '<span class="badge good">PASS</span><small>gpt-oss-120b gfx942</small>' in verdict


def test_what_is_unsure_does_not_look_stale():
    style = (HOUSE / "tools/page/style.css").read_text()
    look = dict(re.findall(r"^\.badge\.(\w+) \{ (.*) \}", style, re.M))
    assert len({look["old"], look["unsure"], look["good"], look["bad"]}) == 4


def test_the_chip_that_a_test_passed_as_is_read_without_a_pointer(other):
    path = other / "evidence/tests.cpu.jsonl"
    # Fresh, whatever it is here.
    store.write(path, {"key": keys.key("cpu", keys.of_tests())}, store.read(path).rows)
    proven = cell_of(row_of(report.page(other), "0.5.10.post1", "layernorm"), "proven on")
    assert "<small>as gfx942 and gfx950</small>" in proven


def test_nobody_ran_it_on_amd_until_evidence_says_so(text, other):
    assert "nobody has run it on an AMD GPU yet" in text
    kept = next((other / "evidence").glob("gsm8k.*"))
    kept.rename(kept.with_name("gsm8k.gpt-oss-120b.AMD-Instinct-MI300X.json"))
    text = report.page(other)
    assert "nobody has run it" not in text
    assert "of it on AMD: AMD Instinct MI300X." in text


# In a browser -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = selenium.ChromeService(executable_path=driver)
    driver = selenium.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, text, tmp_path):
    (tmp_path / "index.html").write_text(text)
    browser.set_window_size(*DESKTOP)
    browser.get(f"file://{tmp_path}/index.html")
    return browser


def shown(page, column):
    """What a column of the matrix shows, from top to bottom."""
    return page.execute_script(
        "return [...document.querySelectorAll('#matrix-table tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[arguments[0]].firstChild.textContent.trim())",
        column,
    )


def rendered_at(page, size):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
    )


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(page):
    slugs = shown(page, 1)
    heading = page.find_elements("css selector", "#matrix-table th button")[1]
    heading.click()
    assert shown(page, 1) == sorted(slugs) != slugs
    heading.click()
    assert shown(page, 1) == sorted(slugs, reverse=True)
    saved = page.find_elements("css selector", "#matrix-table th button")[5]
    saved.click()
    saved.click()  # falling: most launches saved first
    assert shown(page, 1)[0] in ("layernorm", "indexer", "nsa-fp8-kv")


def test_words_and_choices_filter(page):
    everything = len(shown(page, 0))
    words = page.find_element("css selector", "#matrix input[type=search]")
    words.send_keys("rope-kv")
    assert set(shown(page, 1)) == {"rope-kv-store"}
    words.clear()
    words.send_keys(" ")
    assert len(shown(page, 0)) == everything
    choice = page.find_element("css selector", "#matrix select[data-column=release]")
    option = choice.find_elements("tag name", "option")[1]
    option.click()
    assert set(shown(page, 0)) == {option.text}
    count = page.find_element("css selector", "#matrix output").text
    assert count == f"{len(shown(page, 0))} of {everything}"


def test_a_choice_shows_what_serves_it_among_others(page):
    caches = (
        "return [...document.querySelectorAll('#tilelang-table tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[2].textContent.trim())"
    )
    everything = page.execute_script(caches)
    choice = page.find_element(
        "css selector", "select[data-table=tilelang-table][data-column=cache]"
    )
    options = {option.text: option for option in choice.find_elements("tag name", "option")}
    assert list(options) == ["all", "bf16", "fp8"]
    options["fp8"].click()
    shown = page.execute_script(caches)
    assert shown == [cache for cache in everything if "fp8" in cache]
    assert set(shown) == {"fp8", "bf16 and fp8"}


WIDE = """
document.querySelectorAll('details').forEach(each => each.open = true)
return [...document.querySelectorAll('.wide')].map(each => [
  each.scrollWidth > each.clientWidth,
  getComputedStyle(each.previousElementSibling, '::after').content.includes('sideways'),
])
"""


def test_a_wide_table_is_whole_on_a_desktop_and_a_phone_says_that_it_scrolls(page):
    for size, beyond in ((DESKTOP, False), (PHONE, True)):
        rendered_at(page, size)
        tables = page.execute_script(WIDE)
        assert len(tables) == 4  # two benchmarks, machine code, sparse attention
        assert tables == [[beyond, beyond]] * 4


def test_a_phone_sorts_and_filters_by_the_controls_above_the_cards(page):
    rendered_at(page, PHONE)
    everything = shown(page, 1)
    assert not page.find_element("css selector", "#matrix-table thead").is_displayed()
    order = page.find_element("css selector", "#matrix select[data-sort]")
    for direction, backwards in (("rising", False), ("falling", True)):
        chosen = next(o for o in order.find_elements("tag name", "option")
                      if o.text == f"slug, {direction}")  # fmt: skip
        chosen.click()
        assert shown(page, 1) == sorted(everything, reverse=backwards) != everything
    page.find_element("css selector", "#matrix input[type=search]").send_keys("rope-kv-store 0.5.9")
    assert shown(page, 1) == ["rope-kv-store"]
    card = page.find_element("css selector", "#matrix-table tr:not([hidden]) td")
    assert card.is_displayed()
    assert card.location["x"] + card.size["width"] <= PHONE[0]
    for control in page.find_elements("css selector", "#matrix .controls > label > *"):
        assert control.location["x"] + control.size["width"] <= PHONE[0]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_fits_the_screen_and_the_browser_complains_of_nothing(page, size, tmp_path):
    rendered_at(page, size)
    width = page.execute_script("return document.scrollingElement.scrollWidth")
    assert width <= size[0]
    if size == PHONE:  # a row is a card, with room for the columns' names before their values
        room = "return getComputedStyle(document.querySelector('#matrix-table td')).paddingLeft"
        assert float(page.execute_script(room).removesuffix("px")) > 100
    images = page.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert images
    assert all(images)
    assert page.get_log("browser") == []
    assert page.save_screenshot(str(tmp_path / "page.png"))
    picture = (tmp_path / "page.png").read_bytes()
    assert len(picture) > 20_000  # an empty page's has a few thousand
