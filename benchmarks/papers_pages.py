"""Write the tables of docs/papers: each row's recipe, what the paper prints, what benchmarks/papers.py has measured.

python benchmarks/papers_pages.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from morphogen.recipes import FIGURES, TABLES, Table
from morphogen.report.render import as_markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "papers"
MARK = "<!-- tables, written by benchmarks/papers_pages.py -->"


def section(table: Table) -> str:
    """One table: figures as `paper` and, where there are any, `paper / here`."""
    path = RESULTS / table.name.replace("/", "_") / "results.json"
    records = json.loads(path.read_text()) if path.exists() else []
    here = {record["recipe"]: record["measured"] for record in records}
    keys = [key for key in FIGURES if any(key in row.paper for row in table.rows)]
    rows = []
    for row in table.rows:
        name = f"{table.name}/{row.name}"
        rows.append({"recipe": f"`{name}`"} | {FIGURES[key]: both(key, row.paper, here.get(name, {})) for key in keys})
    scale = f" After the stroke: here, scaled by {records[0]['scale']:g}, one seed." if records else ""
    notes = dict.fromkeys(row.note for row in table.rows if row.note)
    needs = dict.fromkeys(f"needs `--{key}`: {what}" for row in table.rows for key, what in row.needs.items())
    told = "".join(f"\n- {note}" for note in (*needs, *notes))
    return f"### {table.name}: {table.title}\n\n{table.hardware}.{scale}\n\n{as_markdown(rows)}\n{told}".rstrip()


def both(key: str, paper: Mapping[str, float | str], here: Mapping[str, float]) -> str:
    """The paper's figure, and ours; hours of a scaled run say nothing, and its speedup is that in FLOPs too."""
    printed = paper.get(key, "")
    shown = printed if isinstance(printed, str) else f"{printed:g}"
    if key not in here or key == "hours":
        return shown
    flops = f" ({here['flop_speedup']:.3g} in FLOPs)" if key == "speedup" else ""
    return f"{shown} / {here[key]:.3g}{flops}"


def main() -> None:
    """Everything behind the mark is written anew."""
    for paper in dict.fromkeys(table.paper for table in TABLES):
        path = ROOT / "docs" / "papers" / f"{paper.replace('-', '_')}.md"
        sections = "\n\n".join(section(table) for table in TABLES if table.paper == paper)
        path.write_text(f"{path.read_text().partition(MARK)[0]}{MARK}\n\n{sections}\n")


if __name__ == "__main__":
    main()
