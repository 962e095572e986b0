"""`morphogen report`: one page, whole and harmless whatever the files hold, right to the number, read by everyone."""

import itertools
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from morphogen.cli import main
from morphogen.errors import ConfigError
from morphogen.report.courses import course, flops_of_epochs
from morphogen.report.fronts import Point, speedups_at_equal_accuracy
from morphogen.report.headline import write_headline
from morphogen.report.outputs import read_output
from morphogen.report.page import style
from morphogen.report.page.chart import GAP, Scale, apart
from morphogen.report.page.elements import el, table
from morphogen.report.page.heat import level_of
from morphogen.report.page.page import report
from morphogen.report.page.series import series_of
from morphogen.report.page.shape import Shape, change_rows
from morphogen.report.page.times import causes_of

from hostile import nothing_runs, text_of
from pages import MARKUP, Reader, folder, grown, pruned, run, searched

ALL = [
    run(),
    run(seed=1, accuracies=(30.0, 50.0, 70.0, 90.0)),
    run("Dense in the time of Grow", accuracies=(20.0, 40.0, 60.0)),
    grown(),
    searched(),
    pruned(),
]


def points():
    return [
        Point(method, budget, seed, 50 + 20 * budget + seed, 10 * budget * cost, 1e12 * budget * cost)
        for method, cost in (("Dense", 1.0), ("Grow", 0.75))
        for budget in (0.5, 1.0)
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def lengths(tmp_path_factory):
    """A folder with fronts."""
    path = tmp_path_factory.mktemp("lengths")
    head = {"metric": "accuracy", "seconds_of": "the runs themselves", "end_to_end": {"Grow": (1.3, 1.25)}}
    write_headline(points(), speedups_at_equal_accuracy(points()), head, path)
    lines = [run(budget=0.5), run(budget=1.0), grown(budget=0.5), grown(budget=1.0)]
    (path / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory, lengths):
    """The file of a page with everything on it."""
    path = tmp_path_factory.mktemp("page")
    output = path / "report.html"
    assert main(["report", str(folder(path / "study", *ALL)), str(lengths), "--output", str(output)]) == 0
    return output


def test_everything_is_on_the_page(page):
    read = Reader(page.read_text())
    for text in (
        "Accuracy against cost|Speedup at equal accuracy|Accuracy by training time|Accuracy by training FLOPs|1.33x|"
        "Time by cause|Width by channel group|Depth, width, resolution|Changes of size|Searches|Sparsity|All settings|"
        "What is left of each layer|Hardware and versions|a processor|Dense as long as Grow|12 → 24 channels|"
        "1 → 2 blocks|input 8 x 8 → 16 x 16"
    ).split("|"):
        assert text in read.text, text
    assert read.ids == ["run0", "run1"] and read.tags.count("svg") > 10
    assert "/" not in next(text for text in read.texts if "study" in text)  # no path of a machine


@pytest.mark.parametrize(
    "key", ["method", "model", "data", "stopped", "recipe", "environment", "group", "layer", "cause"]
)
def test_a_name_is_never_markup(key, tmp_path):
    """Wherever a text of a file is shown, it is text."""
    records = [run(), pruned(), grown()]
    for record in records:
        if key in ("recipe", "environment"):
            record[key] = {MARKUP: MARKUP}
        elif key == "group":
            for each in [*record["history"], {"subnetwork": record["dense"]}]:
                each["subnetwork"]["channels"][MARKUP] = "0:4"
        elif key == "layer" and record["pruned"]:
            record["pruned"]["sparsity"][MARKUP] = record["pruned"]["sparsity"].pop("layer1")
            record["pruned"]["density"][0]["layer"] = MARKUP
        elif key == "cause":
            record["seconds"][MARKUP] = 3.0
        elif key in record:
            record[key] = MARKUP
    text = report([read_output(folder(tmp_path / "x", *records))])
    read = Reader(text)  # which knows of no script, no image and no handler
    assert "<b>&amp;" in read.text and "\u202e" not in text and "\x00" not in text


def test_the_reader_sees_what_is_wrong():
    for text in (
        "<p><b></p>",
        "<script></script>",
        "<a href='http://x'></a>",
        "<p id=a></p><p id=a></p>",
        "<p onclick=x></p>",
    ):
        with pytest.raises(AssertionError):
            Reader(text)


def test_mutants_are_refused_or_shown(tmp_path, lengths):
    """Files as a damaged disk or a hostile hand leaves them: one message or a page, and nothing runs."""
    files = {"results.json": json.dumps(ALL), "fronts.json": (lengths / "fronts.json").read_text()}
    kinds = {"page": 0, "refused": 0}
    for seed in range(120):
        dice = random.Random(seed)
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        name = dice.choice(list(files))
        (tmp_path / name).write_bytes(text_of(files[name], dice))
        with nothing_runs():
            try:
                text = report([read_output(tmp_path)])
                kinds["page"] += 1
                Reader(text)
            except ConfigError:
                kinds["refused"] += 1
    assert min(kinds.values()) > 10, kinds


def test_what_is_no_run_is_said(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2 and "expected results.json or runs.jsonl" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[1]")
    assert main(["report", str(tmp_path)]) == 2 and "not the results of runs" in capsys.readouterr().err
    assert main(["report", str(tmp_path), "--output", "results.json"]) == 2
    assert "NAME.html" in capsys.readouterr().err


def test_what_is_measured_is_named(tmp_path):
    read = Reader(report([read_output(folder(tmp_path, run(metric="mIoU"), grown(metric="mIoU")))]))
    assert "test mIoU (%)" in read.text and "MIoU by training time" in read.text and "test accuracy" not in read.text


def test_a_course_by_hand():
    """Means and standard deviations over two seeds, epoch by epoch."""
    found = course([run(), run(seed=1, accuracies=(30.0, 50.0, 70.0, 90.0), second=3.0)], "seconds")
    assert found.costs == [2, 4, 6, 8] and found.mean == [25, 45, 65, 85] and found.seeds == 2
    assert found.spread == [pytest.approx(50**0.5)] * 4
    assert flops_of_epochs(grown()) == [2500, 2500, 5000, 5000]  # 10 steps of 500 in two epochs, 10 of 1000 in two
    assert flops_of_epochs(pruned()) == [5000, 2500, 2000, 2000]
    assert course([grown()], "flops").costs == [2500, 5000, 10_000, 15_000]


def test_a_shape_by_hand():
    shape = Shape.of(grown())
    assert shape.dense == {"stem": 8, "head.0": 16, "blocks": 2} and shape.resolution == (16, 16) and shape.epochs == 4
    assert [(shape.width(n), shape.depth(n), shape.size(n)) for n in (0, 1)] == [(0.5, 0.5, 0.5), (1, 1, 1)]
    assert not Shape.of(run()).changes and shape.changes
    [row] = change_rows(grown(), shape)
    assert row["what"] == "12 → 24 channels, 1 → 2 blocks, input 8 x 8 → 16 x 16" and row["points"] == "-5.00"
    without = grown(dense=None)  # of records that do not say: the largest of the run
    assert Shape.of(without).dense == shape.dense


def test_causes_are_means():
    mean = causes_of([run(second=1.0), run(second=3.0)])
    assert mean == {"step": pytest.approx(6.4), "data": pytest.approx(1.6), "evaluation": 1.0}
    assert list(mean)[-1] == "evaluation"


def test_levels_of_a_heat_map():
    assert [level_of(share) for share in (0, 0.01, 0.1, 0.11, 0.5, 0.7, 1)] == [None, 0, 0, 1, 4, 6, 9]


def test_ticks_are_round_and_differ():
    assert Scale(0, 10, 0, 100).ticks() == [(n, str(n)) for n in range(0, 11, 2)]
    assert [told for _, told in Scale(2.301, 2.318, 0, 100).ticks()] == ["2.305", "2.310", "2.315"]
    assert [told for _, told in Scale(0, 5000, 0, 100).ticks()][-1] == "5,000"
    assert Scale(2, 30, 0, 100, log=True).ticks() == [(n, str(n)) for n in (2, 5, 10, 20)]
    assert [tick for tick, _ in Scale(1, 10**6, 0, 100, log=True).ticks()] == [10**power for power in range(7)]
    assert Scale(1, 1000, 0, 90, log=True)(10) == pytest.approx(30)


def test_labels_do_not_meet():
    found = apart([50, 51, 52, 200], 10, 205)
    assert all(b - a >= GAP - 1e-9 for a, b in itertools.pairwise(found)) and found[-1] == 200
    assert apart([204, 205], 10, 205) == [205 - GAP, 205]


def test_short_names_are_of_one_method_each():
    names = ["Dense", "Grow(a=1)", "Grow(a=(1, 2))", "A(b=1) + B", "Dense in the time of Grow(a=1)"]
    found = series_of(names)
    assert [found[name].name for name in names] == ["Dense", "Grow 1", "Grow 2", "A + B", "Dense as long as Grow 1"]
    many = series_of(f"M{n}" for n in range(20))
    assert len({(each.look, each.marker) for each in many.values()}) == 20


# Colours


def linear(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour):
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))


def contrast(one, other):
    """As WCAG 2 defines it."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


BLIND = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Machado, Oliveira and Fernandes, 2009, at full severity, on linear RGB."""


def times(matrix, vector):
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def oklab(colour, kind):
    """Björn Ottosson's space, in which equal distances look alike, of what such an eye sees."""
    seen = [min(1, max(0, c)) for c in times(BLIND[kind], linear(colour))]
    to_lms = ((0.4122214708, 0.5363325363, 0.0514459929), (0.2119034982, 0.6806995451, 0.1073969566))
    to_lms += ((0.0883024619, 0.2817188376, 0.6299787005),)
    to_lab = ((0.2104542553, 0.7936177850, -0.0040720468), (1.9779984951, -2.4285922050, 0.4505937099))
    to_lab += ((0.0259040371, 0.7827717662, -0.8086757660),)
    return times(to_lab, [c ** (1 / 3) for c in times(to_lms, seen)])


def apart_by(one, other, kind):
    return sum((a - b) ** 2 for a, b in zip(oklab(one, kind), oklab(other, kind), strict=True)) ** 0.5


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_colour_blind_tell_the_colours_apart(scheme):
    colours = [*(style.LIGHT, style.DARK)[scheme], style.INK[scheme]]
    ground = style.GROUND[scheme]
    for kind in BLIND:
        pairs = [(apart_by(a, b, kind), a, b) for n, a in enumerate(colours) for b in colours[:n]]
        assert min(pairs)[0] > 0.12, (kind, min(pairs))
    assert min(contrast(colour, ground) for colour in colours) >= 3  # WCAG 1.4.11, graphics
    assert contrast(style.INK[scheme], ground) >= 7 and contrast(style.SOFT[scheme], ground) >= 4.5
    assert apart_by("#009e73", "#d55e00", "deuteranopia") > 0.1 > apart_by("#00a000", "#c05000", "deuteranopia")


def test_text_is_text():
    assert table([{"a": "<b>"}])[0][0][0][0].text == "a"
    assert el("p", "one", el("b", "two"), "three", class_="x").get("class") == "x"


# A browser


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


PROBE = """<!DOCTYPE html><meta charset=utf-8><iframe id=f style="width:%dpx;height:900px;border:0"></iframe><script>
f.onload = () => { const d = f.contentDocument, e = d.documentElement; document.body.append(JSON.stringify({
  wide: e.scrollWidth, ground: f.contentWindow.getComputedStyle(d.body).backgroundColor,
  letters: Math.min(...[...d.querySelectorAll('svg text')].map(t => t.getBoundingClientRect().height).filter(h => h)),
  drawn: [...d.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().height > 20).length})) };
f.srcdoc = %s</script>"""


@pytest.mark.skipif(browser() is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_it(page, tmp_path, width, scheme):
    """No sideways scroll, letters that can be read, the scheme that is asked for."""
    text = json.dumps(page.read_text()).replace("</", "<\\/")
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE % (width, text))
    command = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}", "--virtual-time-budget=5000"]
    done = subprocess.run(
        [*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(done.stdout[done.stdout.rindex('{"wide"') : done.stdout.rindex("}") + 1])
    assert found["wide"] <= width and found["letters"] > 9 and found["drawn"] > 10, found
    assert found["ground"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(21, 23, 26)"}[scheme]
    assert Path(page).stat().st_size < 500_000
