"""The documentation: its code runs, its commands are read, its links lead somewhere, the site is whole."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
import yaml
from markdown.extensions.toc import slugify

import morphogen
from morphogen import cli, extend
from morphogen.graph.rules import LAYERS, RULES
from morphogen.methods import METHODS
from morphogen.morph.entry import DEPTH_OPERATORS
from morphogen.morph.growth import OPERATORS

from nightly import often

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
CARDS = sorted((ROOT / "src" / "morphogen" / "methods" / "cards").glob("*.md"))
PAGES = [*sorted(DOCS.rglob("*.md")), *CARDS, *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "LOG"))]
README = ROOT / "README.md"
TABLES = (RULES, LAYERS, OPERATORS, DEPTH_OPERATORS, METHODS)
FENCE = re.compile(r"^(```+)([^\n]*)\n(.*?)^\1", re.DOTALL | re.MULTILINE)


def named(path):
    return str(path.relative_to(ROOT))


def python_blocks(text):
    return [textwrap.dedent(code) for _, language, code in FENCE.findall(text) if language.strip() == "python"]


SCRIPT = """
import argparse
import torch
from torch import nn
import morphogen
from nets import Tower
device, epoch, epochs = "cpu", 0, 8
args = argparse.Namespace(epochs=4, train_crop_size=16)
data_config = {"input_size": (3, 16, 16)}
images, labels = torch.randn(4, 3, 16, 16), torch.randint(4, (4,))
loader, some_batches = [(images, labels)] * 9, [(images, labels)]
cross_entropy = nn.functional.cross_entropy
net = Tower()
model = model_without_ddp = net
model_ema = torch.optim.swa_utils.AveragedModel(net)
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
"""
"""What a script has before the lines that a page adds to it; made anew for each section."""
ADDED_TO_A_SCRIPT = {"own_loops.md", "prunetrain.md", "autoprog.md"}
ELSEWHERE = {"CONTRIBUTING.md": "test_readme.py", "sharded.md": "test_sharded.py, on two ranks"}
SLOW = {"recommend.md", "fine_tuning.md", "export.md", "tasks.md", "detection.md"}
"""What these show on networks of ordinary size is tested on small ones elsewhere; they run at night."""
WITH_CODE = [path for path in PAGES if path.name not in ELSEWHERE and python_blocks(path.read_text())]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "path",
    often(WITH_CODE, lambda path: path.name not in SLOW),
    ids=named,
)
def test_the_code_of_a_page_runs(path, tmp_path, monkeypatch):
    """Its blocks in order, as one script."""
    monkeypatch.chdir(tmp_path)
    before, names = [dict(table) for table in TABLES], {"__name__": "__main__"}
    try:
        for section in re.split(r"^## ", path.read_text(), flags=re.MULTILINE):
            blocks = python_blocks(section)
            if blocks and path.name in ADDED_TO_A_SCRIPT:
                exec(SCRIPT, names)
            for code in blocks:
                exec(compile(code, named(path), "exec"), names)
    finally:
        for table, old in zip(TABLES, before, strict=True):
            table.clear()
            table.update(old)


def commands(text):
    """The `morphogen` commands in a page's blocks, lines that go on put together."""
    blocks = [body for _, language, body in FENCE.findall(text) if language.strip() in ("", "sh", "bash", "console")]
    blocks.append("\n".join(re.findall(r"^ {4}(.*)$", FENCE.sub("", text), re.MULTILINE)))
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        if found := re.search(r"^(?:\$ )?morphogen (.*)|-m morphogen (.*)|&& uv run --no-sync morphogen (.*)", line):
            yield [word for word in shlex.split(next(filter(None, found.groups())), comments=True) if word != "..."]


COMMANDS = {" ".join(words): words for path in [README, *PAGES] for words in commands(path.read_text())}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_is_one_that_the_command_line_takes(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, _ = cli._parse(words)
    assert command.name == words[0]


def test_the_page_of_the_command_line_has_every_command():
    told = re.findall(r"^\| `([\w-]+)` \|", (DOCS / "command_line.md").read_text(), re.MULTILINE)
    assert {*cli.COMMANDS} <= {*told}


def test_commands_are_found():
    text = "    morphogen train --seed 1 \\\n        --lr 2  # so\n\n```sh\n$ morphogen compare\n```\n\n"
    text += "    torchrun -m morphogen train ...\n"
    assert sorted(commands(text)) == [["compare"], ["train"], ["train", "--seed", "1", "--lr", "2"]]
    assert len(COMMANDS) > 20


def anchors(path):
    """Where a link can point to within a page."""
    text, found, seen = FENCE.sub("", path.read_text()), set(), Counter()
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = slugify(re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).replace("`", ""), "-")
        found.add(f"{slug}_{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found | set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))


def broken(path, text):
    """The links of a page that lead nowhere, or whose address cannot be one."""
    for target in re.findall(r"\]\(([^)\s]*)\)", re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        link = urlsplit(target)
        if link.scheme or link.netloc:
            if link.scheme != "https" or not re.fullmatch(r"([\w-]+\.)+[a-z]+", link.netloc):
                yield target
            continue
        to = (path.parent / unquote(link.path)).resolve() if link.path else path
        if not to.is_file() or (link.fragment and to.suffix == ".md" and link.fragment not in anchors(to)):
            yield target


@pytest.mark.parametrize("path", [README, *PAGES], ids=named)
def test_links_lead_somewhere(path):
    text = path.read_text()
    assert not list(broken(path, text))
    assert not re.search(r"@[A-Z]+@", text)


def test_broken_links_are_found():
    bad = ["no.md", "limits.md#nothing", "http://example.org", "https://nowhere/x", "#nothing", "../benchmarks"]
    text = "".join(f"[a]({target}) " for target in (*bad, "limits.md#models", "https://arxiv.org/abs/1", "#grow"))
    assert list(broken(DOCS / "grow.md", text + "`[a](no.md)`\n\n```python\nx[0](y)\n```\n")) == bad


@pytest.mark.parametrize("path", [README, *PAGES], ids=named)
def test_words_are_those_of_the_field(path):
    """NaN, resume, warn: not idioms of our own, which readers have stumbled over."""
    ours = r"honest sentence|gone on with|is told of|loss (that )?is no number|what is out (goes|hands)|in vain"
    assert path.name == "LOG.md" or not re.findall(ours, path.read_text())


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1200


def test_every_page_is_in_the_menu_once():
    def pages(menu):
        return [
            page
            for entry in menu
            for value in entry.values()
            for page in (pages(value) if isinstance(value, list) else [value])
        ]

    menu = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]
    elsewhere = [f"methods/{path.name}" for path in CARDS] + ["contributing.md", "changelog.md", "log.md"]
    assert sorted(pages(menu)) == sorted([path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")] + elsewhere)


def test_the_reference_has_every_public_name():
    for page, package, names in (
        ("api", "morphogen", morphogen.__all__),
        ("api_extend", "morphogen.extend", extend.__all__),
    ):
        entries = re.findall(r"^::: (\S+)$", (DOCS / f"{page}.md").read_text(), re.MULTILINE)
        assert sorted(entries) == sorted(
            "morphogen.morph.commit.morph" if name == "morph" else f"{package}.{name}" for name in names
        )


class Html(HTMLParser):
    """What a page of the site links to, and what can be linked to in it."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            if name in ("id", "name"):
                self.ids.add(value)


def test_the_site_is_built_and_its_links_lead_somewhere(tmp_path):
    """Strictly: what mkdocs warns of is an error."""
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {path: Html(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) >= len(PAGES)
    links = 0
    for path, page in pages.items():
        for link in map(urlsplit, page.links):
            if link.scheme or link.netloc:
                assert link.scheme in ("https", "mailto", "data"), link
                continue
            to = (path.parent / unquote(link.path)).resolve() if link.path else path
            to = to / "index.html" if to.is_dir() else to
            assert to.exists(), (path, link)
            assert not link.fragment or to.suffix != ".html" or unquote(link.fragment) in pages[to].ids, (path, link)
            links += 1
    assert links > 1000


def test_pictures_are_of_the_results(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("drawings", DOCS / "site" / "drawings.py")
    drawings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawings)
    monkeypatch.setattr(drawings, "IMAGES", tmp_path)
    drawings.main()
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert drawn == {name: (DOCS / "images" / name).read_text() for name in drawn} and len(drawn) >= 6
    for study in ("grow_once_vit", "grow_once_resnet"):
        runs = drawings.full_length(study)
        assert f"{runs['GrowOnce']['seconds']:.0f} s, {runs['GrowOnce']['accuracy']:.1f} %" in drawn["saving.svg"]
        assert runs["GrowOnce"]["accuracy"] > runs["Dense"]["accuracy"]


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells in order, as one script; it needs no network."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads((ROOT / "examples" / "first_hour.ipynb").read_text())["cells"]
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None  # nothing of an old run is shown
            exec("".join(cell["source"]).replace("EPOCHS = 10", "EPOCHS = 2"), names)
    assert names["EPOCHS"] == 2
    assert torch.equal(names["again"], names["before"])
