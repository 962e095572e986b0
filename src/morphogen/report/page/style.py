"""How a page looks: two schemes of colours, and everything of one width that fits a phone."""

from __future__ import annotations

from collections.abc import Sequence

LIGHT = ("#003dcd", "#d93600", "#2e9a88", "#901677", "#4a3c00", "#ad6ef5")
DARK = ("#73bbff", "#ffb973", "#007c53", "#f500a3", "#ae9700", "#a200ff")
"""Told apart by the colour-blind of all three kinds, from each other and from the ink, and seen on their ground."""

GROUND, INK = ("#ffffff", "#15171a"), ("#1a1a1a", "#e8e8e8")
SOFT, RULE = ("#595959", "#a8adb4"), ("#dcdfe4", "#33373d")
HEAT = ("#003dcd", "#73bbff")
"""Heat maps have one hue, the stronger the more; they need no eye for colours."""

SERIES = len(LIGHT)
DASHES = ("none", "7 3", "2 2.5", "9 3 2 3", "4 2", "1 3")
LEVELS = 10
"""Steps of a heat map."""


def style() -> str:
    """The style sheet."""
    series = "".join(f".s{i}{{--s:var(--c{i})}}.d{i}.line{{stroke-dasharray:{DASHES[i]}}}\n" for i in range(SERIES))
    heat = "".join(f".h{i}{{fill:var(--heat);fill-opacity:{(i + 1) / LEVELS:g}}}" for i in range(LEVELS))
    return (
        f":root{{{_scheme(0, LIGHT)}}}\n@media (prefers-color-scheme:dark){{:root{{{_scheme(1, DARK)}}}}}\n"
        f".dense{{--s:var(--ink)}}\n{series}{heat}{SHEET}"
    )


def _scheme(number: int, colours: Sequence[str]) -> str:
    named = {"ground": GROUND, "ink": INK, "soft": SOFT, "rule": RULE, "heat": HEAT}
    variables = [f"--{name}:{pair[number]}" for name, pair in named.items()]
    return ";".join(variables + [f"--c{i}:{colour}" for i, colour in enumerate(colours)])


SHEET = """
*{box-sizing:border-box}
body{margin:0 auto;max-width:70rem;padding:1rem;background:var(--ground);color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.35rem;border-top:2px solid var(--ink);padding-top:.6rem;margin:2.5rem 0 .5rem}
h3{font-size:1.1rem;margin:2rem 0 .3rem}
h4{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0;max-width:45rem}
.soft,figcaption,caption{color:var(--soft)}
a{color:inherit}
code{font:.9em ui-monospace,"DejaVu Sans Mono",monospace}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1rem 2rem;align-items:start}
figure{margin:.8rem 0;min-width:0;max-width:31rem}
figure.wide{max-width:none}
figcaption{font-size:.85rem;margin-top:.2rem}
svg{display:block;width:100%;height:auto;font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
svg text{fill:var(--ink)}
svg .tick{fill:var(--soft);font-size:11px}
svg .title{font-weight:600}
svg .named{paint-order:stroke;stroke:var(--ground);stroke-width:3px;stroke-linejoin:round}
.rule{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--soft);stroke-width:1;fill:none}
.leader{stroke:var(--soft);stroke-width:.7;stroke-dasharray:1 2}
.line{fill:none;stroke:var(--s);stroke-width:2;stroke-linejoin:round}
.thin{stroke-width:1;stroke-opacity:.6}
.band{fill:var(--s);fill-opacity:.16}
.bar{fill:var(--s);stroke:var(--ground);stroke-width:1.5}
.dot{fill:var(--s);stroke:var(--ground);stroke-width:1}
.hollow{fill:var(--ground);stroke:var(--s);stroke-width:1.5}
.ring{fill:none;stroke:var(--ink);stroke-width:1.6}
.beside{fill-opacity:.35}
svg .inside{fill:var(--ground)}
.frame{fill:none;stroke:var(--rule)}
.scroll{overflow-x:auto;margin:.6rem 0;max-width:100%}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap;vertical-align:top}
th:first-child{text-align:left;padding-left:0;font-weight:400}
thead th{font-weight:600;color:var(--soft)}
.names th:first-child,.words td,.words th{white-space:normal;text-align:left}
.names th:first-child{min-width:12rem}
details{margin:.6rem 0}
summary{cursor:pointer;color:var(--soft)}
.key{list-style:none;padding:0;margin:.6rem 0}
.key li{display:flex;gap:0 .6rem;align-items:baseline;margin:.15rem 0}
.key svg{flex:none;width:2.6rem;align-self:center}
.key strong{flex:none}
@media (max-width:30rem){.key li{flex-wrap:wrap}.key code{flex-basis:100%}}
@media print{body{max-width:none}details>*{display:block}}
"""
