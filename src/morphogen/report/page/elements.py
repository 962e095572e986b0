"""Elements of a page. It is a tree whose texts are escaped when it is written: a name in a file is never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

LONGEST = 300
"""Characters of one text; a file can hold longer ones."""

Child = Element | str | None


def el(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element.

    Args:
        tag: its name.
        children: elements and texts; None is left out.
        attributes: `class_` becomes `class`, `stroke_width` becomes `stroke-width`; None is left out. Numbers are
            rounded to a hundredth.
    """
    found = Element(tag)
    for key, value in attributes.items():
        if value is not None:
            found.set(key.rstrip("_").replace("_", "-"), printable(value) if isinstance(value, str) else number(value))
    return extend(found, children)


def extend(parent: Element, children: Iterable[Child]) -> Element:
    """Add elements and texts at its end; returns it."""
    for child in children:
        if isinstance(child, Element):
            parent.append(child)
        elif child is not None and len(parent):
            parent[-1].tail = (parent[-1].tail or "") + clean(child)
        elif child is not None:
            parent.text = (parent.text or "") + clean(child)
    return parent


def clean(text: str) -> str:
    """A text of bounded length, with a sign for every character that controls something, such as the direction."""
    return printable(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def printable(text: str) -> str:
    """A text with a sign for every character that is none."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text)


def number(value: float) -> str:
    """A coordinate."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def table(rows: Sequence[dict[str, str]], class_: str = "") -> Element:
    """Rows with the same keys; the first column is a heading, the others are figures."""
    head = el("tr", *(el("th", key, scope="col") for key in rows[0]))
    lines = []
    for row in rows:
        first, *others = row.values()
        lines.append(el("tr", el("th", first, scope="row"), *(el("td", each) for each in others)))
    return el(
        "div", el("table", el("thead", head), el("tbody", *lines)), class_=f"scroll {class_}".strip(), tabindex="0"
    )


def details(summary: str, *children: Child) -> Element:
    """What is folded away until it is asked for."""
    return el("details", el("summary", summary), *children)


def document(title: str, style: str, body: Iterable[Child]) -> str:
    """The whole page.

    The content policy forbids scripts and whatever is not in the page, also where all else has failed.
    """
    html = el("html", lang="en")
    head = SubElement(html, "head")
    SubElement(head, "meta", {"charset": "utf-8"})
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    SubElement(head, "meta", {"http-equiv": "Content-Security-Policy", "content": policy})
    SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    SubElement(head, "meta", {"name": "color-scheme", "content": "light dark"})
    head.append(el("title", title))
    SubElement(head, "style").text = style
    html.append(extend(el("body"), body))
    return "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html") + "\n"
