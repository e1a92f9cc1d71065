"""The look of the page: ink on paper, one red, and the same at night."""

CSS = """
:root {
  --paper: #faf7f0; --card: #fffdf8; --ink: #23201c; --soft: #726b60; --rule: #e2dbcd;
  --s0: #b3362b; --s1: #23727a; --s2: #8a6d1d; --s3: #5a4a9c; --s4: #3f7a36; --s5: #a03a7d;
  --band: #efe8d8;
  --serif: "Noto Serif CJK SC", "Source Han Serif SC", "Songti SC", STSong, SimSun, Georgia, serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #17161a; --card: #1f1e23; --ink: #e9e4d9; --soft: #a29b8f; --rule: #38353b;
    --s0: #f0806f; --s1: #62bdc0; --s2: #d9b65c; --s3: #a99be8; --s4: #8cc97f; --s5: #e58fc3;
    --band: #29272e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 2.5rem 1rem 4rem; }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.25; overflow-wrap: anywhere; }
h1 { font-size: clamp(2.2rem, 7vw, 3.6rem); margin: 0 0 .5rem; }
h1::after { content: ""; display: block; width: 3rem; height: .3rem; margin-top: 1rem; background: var(--s0); }
h2 { font-size: 1.7rem; margin: 3.5rem 0 1rem; padding-top: 1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.1rem; margin: 1.8rem 0 .6rem; }
h4 { font: 500 1rem/1.5 inherit; margin: 1.4rem 0 .9rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .6rem 0; }
h1 + section > p:first-child { font-size: 1.2rem; }
small { color: var(--soft); font-size: .8rem; font-weight: 400; }
.warning { padding: .5rem .9rem; border-left: .3rem solid var(--s0); background: var(--card); }
.tiles, .charts, .samples {
  display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr));
}
.tiles { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 1.6rem 0; }
.tiles > div, figure, article, .facts > div {
  background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: 1rem;
}
.tiles b { display: block; font: 600 2.1rem/1.2 var(--serif); color: var(--s0); }
.tiles small { display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1.2rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .7rem; border-bottom: 1px solid var(--rule); text-align: right; }
td { white-space: pre-line; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .9rem; }
tbody th { font-weight: 500; }
@media (max-width: 600px) {
  th, td { padding: .45rem .3rem; font-size: .9rem; }
  dl { column-gap: .8rem; grid-template-columns: minmax(5rem, max-content) 1fr; }
}
figure { margin: 0; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 0 .9rem; font-size: .92rem; margin-bottom: .4rem; }
figcaption > :first-child { margin-right: auto; }
svg { display: block; width: 100%; height: auto; }
figure.broad { grid-column: 1 / -1; } figure.broad > div { overflow-x: auto; } figure.broad svg { min-width: 560px; }
svg text { fill: var(--soft); font-size: 11px; font-family: inherit; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); } 
svg .band { fill: var(--band); stroke: var(--card); }
svg path.mark { stroke: var(--ink); stroke-dasharray: 3 3; } svg text.mark { fill: var(--ink); }
svg .line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
figcaption .s0 { color: var(--s0); } svg .line.s0 { stroke: var(--s0); } svg circle.s0 { fill: var(--s0); }
figcaption .s1 { color: var(--s1); } svg .line.s1 { stroke: var(--s1); } svg circle.s1 { fill: var(--s1); }
figcaption .s2 { color: var(--s2); } svg .line.s2 { stroke: var(--s2); } svg circle.s2 { fill: var(--s2); }
figcaption .s3 { color: var(--s3); } svg .line.s3 { stroke: var(--s3); } svg circle.s3 { fill: var(--s3); }
figcaption .s4 { color: var(--s4); } svg .line.s4 { stroke: var(--s4); } svg circle.s4 { fill: var(--s4); }
figcaption .s5 { color: var(--s5); } svg .line.s5 { stroke: var(--s5); } svg circle.s5 { fill: var(--s5); }
article { position: relative; padding: 1.2rem 1rem; text-align: center; }
article h5 { font: 600 .95rem var(--serif); margin: 0 0 .5rem; color: var(--soft); }
article small { position: absolute; top: -.7rem; left: .8rem; padding: 0 .6rem; border-radius: 1rem;
  background: var(--s0); color: var(--paper); font-size: .75rem; }
article small + small { left: auto; right: .8rem; }
article.imperfect { border: 1px dashed var(--s0); }
.poem { font: 1.15rem/2 var(--serif); margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
article.prose { text-align: left; }
.answer {
  font: 1rem/1.55 Georgia, "Noto Serif", serif; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
}
.bars {
  display: grid; grid-template-columns: max-content minmax(3rem, 1fr) max-content; gap: .35rem .9rem;
  font-size: .92rem;
}
.bar { align-self: center; }
.bar i { display: block; min-width: 2px; height: .8rem; border-radius: .2rem; background: var(--s1); }
summary { cursor: pointer; margin: .8rem 0; color: var(--soft); }
.facts { columns: 20rem; column-gap: 1rem; }
.facts:has(> :only-child) { columns: auto; }
.facts > div { break-inside: avoid; margin-bottom: 1rem; }
.facts h3 { margin-top: 0; }
dl {
  display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1.2rem; margin: 0; font-size: .92rem;
}
dt { color: var(--soft); overflow-wrap: anywhere; }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.nested { grid-column: 1 / -1; padding: 0 0 .4rem 1rem; }
pre { padding: 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; }
"""
