"""report.html: well-formed, complete in itself, with every string escaped, and no wider than a phone."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from run_folders import BENCHMARK, TVKD_ROWS, chain, stage, submission, trained, write

from nemo_tvkd.commands.report import main

HOSTILE = """<script>alert(1)</script>"'&<img src=x onerror=alert(1)> $\\frac$ {{ 7*7 }}"""
VOID = ("meta", "br", "img", "link", "input", "hr")


class Page(HTMLParser):
    """Elements with their attributes, and the text in each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def count(self, tag: str) -> int:
        return sum(found == tag for found, _ in self.elements)

    def text_of(self, tag: str) -> list[str]:
        return [" ".join(text.split()) for inside, text in self.texts if inside == tag]


def report(run_dir: Path) -> Page:
    assert main(str(run_dir)) == 0
    return Page((run_dir / "report.html").read_text())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = chain(tmp_path_factory.mktemp("report") / "chain")
    assert main(str(run_dir)) == 0
    return run_dir


def test_the_page_shows_tables_and_curves(run_dir: Path) -> None:
    page = Page((run_dir / "report.html").read_text())
    assert page.text_of("h1") == ["tvkd_tiny: results"]
    sections = [text for text in page.text_of("h2") if text]
    assert sections == ["Results", "teacher_sft", "student_sft", "score", "train", "evaluate", "benchmark"]
    assert page.count("svg") == 3 + 3 + 5  # two SFT runs without margins, one training
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert labels[-5:] == ["loss", "accuracy", "reward margin", "learning rate", "gradient norm"]
    cells = page.text_of("td")
    assert {"0.6139", "trainer.seed=3", "mean ± s.d. of 2 of 3 seeds", "309.1 KiB"} <= set(cells)
    drawn = page.text_of("text")
    assert {"loss", "step", "0 training", "1 validation", "2 training"} <= set(drawn)


def test_the_page_needs_nothing_else(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text()
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "image", "base"}
    for _, attributes in page.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "action")
            if name in ("href", "xlink:href"):
                assert (value or "").startswith("#")
    assert all(match.startswith("#") for match in re.findall(r"url\((.*?)\)", text))
    assert "@import" not in text


def test_names_inside_the_drawings_are_defined_once(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text()
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    used = set(re.findall(r"url\(#([^)]*)\)", text)) | set(re.findall(r'href="#([^"]*)"', text))
    assert len(ids) == len(set(ids))
    assert used == set(ids)


def test_the_page_follows_light_and_dark(run_dir: Path) -> None:
    text = (run_dir / "report.html").read_text()
    assert "prefers-color-scheme: dark" in text
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert all("currentColor" in drawing for drawing in drawings)
    colours = set(re.findall(r"#[0-9a-f]{6}\b", " ".join(drawings)))
    assert not colours & {"#000000", "#ffffff", "#010203"}


def test_strings_of_the_data_stay_text(tmp_path: Path) -> None:
    sweep = [[f"data.train={HOSTILE}"], [f"data.train=other {HOSTILE}"]]
    stages = [
        stage(f"x{HOSTILE}".replace("/", ""), "train", job_id=1, output="train", tasks=2, sweep=sweep),
        stage("benchmark", "benchmark", job_id=2),
        stage("evaluate", "evaluate", job_id=3),
    ]
    submission(tmp_path, stages, recipe=HOSTILE, cluster=HOSTILE, submitted=HOSTILE)
    for index in range(2):
        trained(tmp_path / "train" / str(index), TVKD_ROWS.replace("rewards/chosen", "<b>bold</b>"), "tvkd", 100)
        write(tmp_path / "train" / str(index) / "config.yaml", {"algorithm": {"name": HOSTILE}})
    task = {HOSTILE: {"metric": HOSTILE, "value": 0.5, "stderr": HOSTILE, "shots": HOSTILE, "samples": [HOSTILE]}}
    write(tmp_path / "benchmark" / "results.json", BENCHMARK | {"tasks": task, "versions": {HOSTILE: HOSTILE}})
    write(tmp_path / "evaluate" / "preferences.json", {"checkpoint": HOSTILE, HOSTILE: 1, "by_strength": HOSTILE})
    page = report(tmp_path)
    assert not {tag for tag, _ in page.elements} & {"script", "img", "b"}
    assert "onerror" not in {name for _, attributes in page.elements for name in attributes}
    whole = " ".join("".join(data for _, data in page.texts).replace("\N{NO-BREAK SPACE}", " ").split())
    assert whole.count(HOSTILE) >= 10
    assert "<b>bold</b>" in whole


CHROMIUM = shutil.which("chromium")
MEASURE = """<body style="margin:0"><iframe id="page" src="{page}" style="width:390px;height:800px;border:0"></iframe>
<script>onload = () => {{
  const page = document.getElementById("page").contentDocument;
  const wide = [...page.querySelectorAll("h1, h2, dl, .table, .charts, svg, ul")].map(e => e.getBoundingClientRect());
  document.body.setAttribute("data-found", JSON.stringify({{
    page: page.scrollingElement.scrollWidth, furthest: Math.max(...wide.map(box => box.right)),
    drawings: page.querySelectorAll("svg").length, text: page.querySelector("svg text").getBoundingClientRect().height,
  }}));
}}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (apt-get install chromium)")
def test_the_page_fits_a_phone(run_dir: Path, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=(run_dir / "report.html").as_uri()))
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--hide-scrollbars"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *options, frame.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match is not None, done.stderr[-2000:]
    found = json.loads(match[1].replace("&quot;", '"'))
    assert found["page"] <= 390
    assert found["furthest"] <= 390
    assert found["drawings"] == 11
    assert found["text"] >= 8  # pixels
