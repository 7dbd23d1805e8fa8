"""The report's page: one HTML file that needs nothing else, by day and by night, on a telephone and on paper."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Section = tuple[str, str, str]  # anchor, title, HTML


@dataclass(frozen=True, slots=True)
class Chapter:
    """The sections of one kind of result; without a title where the page has only one."""

    anchor: str
    title: str
    sections: Sequence[Section]


def page(title: str, facts: Sequence[tuple[str, str]], chapters: Sequence[Chapter]) -> str:
    """The whole page. `facts` are names and values below the title; titles and facts are text, sections are HTML."""
    several = len(chapters) > 1
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f'<body><header><h1>{escape(title)}</h1><dl class="facts">{listed}</dl></header>'
        f'<nav aria-label="Sections">{"".join(_links(chapter, several=several) for chapter in chapters)}</nav>\n'
        f"<main>{''.join(_chapter(chapter, several=several) for chapter in chapters)}</main>\n"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def _links(chapter: Chapter, *, several: bool) -> str:
    links = "".join(f'<li><a href="#{anchor}">{escape(title)}</a></li>' for anchor, title, _ in chapter.sections)
    head = f'<a class="chapter" href="#{chapter.anchor}">{escape(chapter.title)}</a>' if several else ""
    return f"<div>{head}<ul>{links}</ul></div>"


def _chapter(chapter: Chapter, *, several: bool) -> str:
    head = f'<h2 class="chapter" id="{chapter.anchor}">{escape(chapter.title)}</h2>' if several else ""
    sections = (
        f'<section id="{anchor}"><h2>{escape(title)}</h2>{html}</section>\n' for anchor, title, html in chapter.sections
    )
    return head + "".join(sections)


# Okabe and Ito's colours, darker on paper, lighter at night; lines also differ in their dashes.
_STYLE = """
:root{--paper:#fdfdfb;--ink:#22262a;--soft:#5c646c;--rule:#dcdcd6;--panel:#f4f4ef;--s1:#0072b2;--s2:#c44e00;--s3:#00805c;
--s4:#a8447f;--s5:#8a6a00;--bar:#3b7fb0;--bar3:#c9702b;--heat:#0072b2;--wrong:#c44e00;--link:#005c91}
@media (prefers-color-scheme:dark){:root{--paper:#16191c;--ink:#e4e6e8;--soft:#a0a8b0;--rule:#363c42;--panel:#1f2428;
--s1:#56b4e9;--s2:#f0904f;--s3:#3cc9a0;--s4:#e39ac6;--s5:#e6c84f;--bar:#4b93c4;--bar3:#d98544;--heat:#4aa3dc;--wrong:#e9863f;
--link:#7cc4f0}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:1rem}
body{margin:0 auto;max-width:62rem;padding:2rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.55 "Segoe UI","Helvetica Neue",Helvetica,Arial,"Noto Sans","DejaVu Sans",sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .75rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:0 0 .75rem;overflow-wrap:anywhere}
h2.chapter{font-size:1.5rem;margin:3rem 0 0;padding-bottom:.3rem;border-bottom:2px solid var(--ink)}
a{color:var(--link)}
section{margin-top:2.5rem;padding-top:1.25rem;border-top:1px solid var(--rule)}
h2.chapter+section{border-top:0;margin-top:0}
dl{margin:0}
.facts{font-size:.92rem}.facts div{display:flex;gap:1rem}.facts dt{flex:0 0 7.5rem;color:var(--soft)}
.tiles dt{font-size:.8rem;color:var(--soft)}
.facts dd{margin:0;overflow-wrap:anywhere}
nav{margin-top:1.5rem;padding:.6rem 0;border-block:1px solid var(--rule);font-size:.9rem}
nav div{display:flex;flex-wrap:wrap;gap:.2rem 1rem}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1rem;list-style:none;margin:0;padding:0}
nav .chapter{font-weight:600;min-width:5.5rem}
nav+main>section:first-child{border-top:0;margin-top:1rem}
.tiles{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;margin-bottom:1rem}
.tiles dd{margin:0;font-size:2.1rem;line-height:1.1;font-variant-numeric:tabular-nums}
.findings{margin:0;padding-left:1.2rem;max-width:46rem}
.findings li{margin:.35rem 0}
figure{margin:0 0 1.5rem}
figcaption,.caption{color:var(--soft);font-size:.9rem;max-width:46rem;margin:.6rem 0 .8rem}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:0 2rem}
.scroll{overflow-x:auto;margin-bottom:1.25rem}
table{border-collapse:collapse;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--rule);vertical-align:middle}
th{font-weight:600;color:var(--soft);border-bottom:1.5px solid var(--ink);white-space:nowrap}
td:first-child{overflow-wrap:anywhere;min-width:5rem}
.num{text-align:right;padding-left:.6rem;white-space:nowrap}
.num:last-child{padding-right:.2rem}
th button{all:unset;cursor:pointer;font:inherit;color:inherit}
th button:hover,th button:focus-visible{color:var(--link);text-decoration:underline}
th[aria-sort=descending] button::after{content:" ↓"}
th[aria-sort=ascending] button::after{content:" ↑"}
.note{font-size:.8rem;color:var(--soft);border:1px solid var(--rule);border-radius:.6rem;padding:0 .45rem;white-space:nowrap}
.chart{display:block;width:100%;height:auto;font-size:13px;fill:var(--ink);color:var(--ink);overflow:visible}
.chart text{font-variant-numeric:tabular-nums}
.spark{display:inline-block;width:80px;height:24px;vertical-align:middle}
.line{fill:none;stroke-width:2.2;stroke-linejoin:round;stroke:var(--soft)}
.spark .line{stroke-width:1.6}
.line.s1{stroke:var(--s1)}.line.s2{stroke:var(--s2);stroke-dasharray:7 3}.line.s3{stroke:var(--s3);stroke-dasharray:2 3}
.line.s4{stroke:var(--s4);stroke-dasharray:10 3 2 3}.line.s5{stroke:var(--s5);stroke-dasharray:5 5}
.line.faint{stroke-width:1;opacity:.55}.line.ideal{stroke-width:1.3;stroke-dasharray:5 4}
.grid,.frame{stroke:var(--rule);stroke-width:1;fill:none}
.mark{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:4 3}
.tick,.axis{fill:var(--soft)}.tick{font-size:12px}
.bar.b1,.bar.b2{fill:var(--bar)}.bar.b3{fill:var(--bar3)}
.whisker{stroke:var(--s1);stroke-width:2}.dot{fill:var(--s1);stroke:var(--s1);stroke-width:2}
.whisker.unclear{stroke:var(--soft)}.dot.unclear{fill:var(--paper);stroke:var(--soft)}
.heat.right{fill:var(--heat)}.heat.wrong{fill:var(--wrong)}
.on-dark{fill:#fff}
@media (prefers-color-scheme:dark){.on-dark{fill:#0b0d0f}}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;margin:.3rem 0 0;padding:0;font-size:.88rem}
.legend li{overflow-wrap:anywhere}
.key{width:22px;height:10px;margin-right:.4rem}
.worst{padding-top:.6rem}
.panels{display:grid;grid-template-columns:repeat(3,1fr);gap:.6rem;
width:min(96vw,120rem);margin-inline:calc(50% - min(48vw,60rem))}
.panels span{display:block;font-size:.8rem;color:var(--soft)}
.panels img{display:block;width:100%;height:auto;background:var(--panel)}
@media (max-width:40rem){table{font-size:.85rem}th,td{padding-right:.45rem}.num{padding-left:.35rem}
body{padding:1.25rem 1rem 3rem}
.panels{grid-template-columns:1fr}.chart{font-size:15px}.tick{font-size:14px}
.tiles{gap:.75rem 1.6rem}.tiles dd{font-size:1.7rem}}
@media print{:root{--paper:#fff;--ink:#000;--soft:#444;--rule:#bbb;--panel:#fff;
--s1:#0072b2;--s2:#c44e00;--s3:#00805c;--s4:#a8447f;
--s5:#8a6a00;--bar:#3b7fb0;--bar3:#c9702b;--heat:#0072b2;--wrong:#c44e00;--link:#000}
body{max-width:none;padding:0;font-size:10pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
@page{margin:15mm}nav{display:none}.panels{width:100%;margin:0}figure,tr{break-inside:avoid}h2{break-after:avoid}.scroll{overflow:visible}.on-dark{fill:#fff}
.chart{max-height:9cm}}
"""

# Tables sort by the head that is clicked; without scripts they stay in their order.
_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("th").forEach((head, column) => {
    if (!body.rows.length || body.rows[0].cells[column].querySelector("svg")) return;
    const button = document.createElement("button");
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numbers = head.classList.contains("num");
      const falling = head.ariaSort ? head.ariaSort === "ascending" : numbers;
      const value = (row) => {
        const text = row.cells[column].textContent;
        return numbers ? parseFloat(text.replaceAll(",", "").replace("\\u2212", "-").replace("\\u2013", "-2")) : text;
      };
      const compare = (a, b) => numbers ? value(a) - value(b) : value(a).localeCompare(value(b));
      body.append(...[...body.rows].sort((a, b) => (falling ? -1 : 1) * compare(a, b)));
      for (const other of head.parentNode.cells) other.ariaSort = null;
      head.ariaSort = falling ? "descending" : "ascending";
    });
  });
}
"""
