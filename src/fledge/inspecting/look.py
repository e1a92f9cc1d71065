"""The look of the inspection page beside that of every page (results/style.py), and its one small script."""

CSS = """
:root {
  --loss: #d9685a; --loss-paper: #f9ded6; --loss-line: #b3362b; --loss-ink: #23201c; --stop-ink: #fffdf8;
  --good-paper: #d7ebe8; --good-line: #23727a; --context: #d3cbbb; --pad: #f0ebdf; --edge: #23201c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --loss: #d9685a; --loss-paper: #55271f; --loss-line: #f0806f; --loss-ink: #f9e9e3; --stop-ink: #1f1e23;
    --good-paper: #163f42; --good-line: #62bdc0; --context: #57534d; --pad: #26252a; --edge: #e9e4d9;
  }
}
nav { display: flex; flex-wrap: wrap; gap: .4rem 1.4rem; margin: 1.4rem 0 0; }
a { color: var(--s1); text-underline-offset: .2em; }
h2 small { display: block; font-family: system-ui, sans-serif; overflow-wrap: anywhere; }
.tiles b { font-size: 1.8rem; }
.key { display: flex; flex-wrap: wrap; gap: .5rem 1.6rem; margin: 1rem 0 1.4rem; font-size: .92rem; }
.key > span { display: flex; align-items: center; gap: .5rem; }
.key .tokens { line-height: 1.4; }
svg.strips { width: 100%; border-radius: .2rem; }
svg .loss { fill: var(--loss); } svg .context { fill: var(--context); } svg .pad { fill: var(--pad); }
svg .edge { fill: var(--edge); }
svg .saw { fill: var(--good-paper); stroke: var(--good-line); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg.sight path { fill: var(--good-line); } svg.sight path.pad { fill: var(--context); }
svg.sight .frame { fill: var(--pad); }
svg .bar.s0 { fill: var(--s0); } svg .bar.s1 { fill: var(--s1); }
.only svg .bar.s0 { fill: var(--s1); }
.swapped svg .bar.s0 { fill: var(--s1); } .swapped svg .bar.s1 { fill: var(--s0); }
.swapped figcaption .s0 { color: var(--s1); } .swapped figcaption .s1 { color: var(--s0); }
.panel, .row { background: var(--card); border: 1px solid var(--rule); border-radius: .5rem; padding: 1.2rem; }
.row { margin: 0 0 1.6rem; }
.row > h4 { font: 600 1.15rem var(--serif); margin: 0 0 .9rem; }
.row > h4 small { margin-left: .6rem; font-family: system-ui, sans-serif; }
.maps { display: grid; grid-template-columns: 1fr 132px; gap: .2rem 1.4rem; align-items: end; margin-bottom: 1.2rem; }
.maps small { align-self: start; }
.docs { columns: 2 25rem; column-gap: 1.6rem; margin-bottom: .6rem; }
.docs:has(> :only-child) { columns: auto; }
.doc { break-inside: avoid; border-left: 3px solid var(--edge); padding-left: 1rem; margin: 0 0 1.3rem; }
.doc > small { display: block; margin-bottom: .35rem; overflow-wrap: anywhere; }
.doc > small b { color: var(--ink); font-weight: 600; }
.padding { border-left: 3px dashed var(--context); padding-left: 1rem; color: var(--soft); font-size: .9rem; }
.tokens {
  max-width: none; margin: 0; line-height: 2.05; white-space: pre-wrap; overflow-wrap: anywhere; color: var(--soft);
}
.tokens:focus-visible { outline: 2px solid var(--s1); outline-offset: .4rem; }
.tokens i, .key em {
  font-style: normal; unicode-bidi: isolate; padding: .12em .06em; margin: 0 .5px; cursor: default;
  border-bottom: 2px solid transparent; border-radius: .15em; -webkit-box-decoration-break: clone;
  box-decoration-break: clone;
}
.tokens .l { background: var(--loss-paper); color: var(--loss-ink); border-bottom-color: var(--loss-line); }
.chosen .l { background: var(--good-paper); border-bottom-color: var(--good-line); }
.tokens .x {
  font: 500 .74em/1 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; padding: .28em .4em;
  border: 1px solid var(--s1); border-radius: .9em; color: var(--s1); white-space: nowrap; vertical-align: .1em;
}
.tokens .x.l { color: var(--loss-ink); border-color: var(--loss-line); }
.tokens .l.s { background: var(--loss-line); color: var(--stop-ink); }
.chosen .l.s { background: var(--good-line); border-color: var(--good-line); }
.tokens u { text-decoration: none; border-bottom: 3px double currentColor; padding-bottom: .1em; }
.tokens u i:not(:first-child) { font-size: .6em; vertical-align: .6em; }
.tokens i.on { outline: 2px solid var(--ink); outline-offset: 1px; }
.breaks { opacity: .7; font-size: .8em; }
.mask { display: grid; grid-template-columns: 1fr max-content; }
.mask > * { padding: .7rem 0; border-top: 1px solid var(--rule); min-width: 0; }
.mask > b { padding-left: 1.4rem; font-weight: 500; font-variant-numeric: tabular-nums; color: var(--soft); }
.mask > b.learnt { color: var(--loss-line); }
.mask > .head:first-child { padding-left: 0; }
.mask > .head { border-top: 0; padding-top: 0; color: var(--soft); font-size: .9rem; font-weight: 400; }
pre { font: .82rem/1.55 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
pre mark { background: var(--loss-paper); color: var(--loss-ink); border-radius: .15rem; padding: .1rem 0; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem 1.6rem; }
.sides .doc { margin-bottom: .4rem; }
.chosen { border-left-color: var(--good-line); } .rejected { border-left-color: var(--loss-line); }
ul.checks { list-style: none; margin: .6rem 0; padding: 0; columns: 2 24rem; column-gap: 2.5rem; }
ul.checks li {
  display: grid; grid-template-columns: 3.4rem 1fr; padding: .45rem 0; border-bottom: 1px solid var(--rule);
  break-inside: avoid;
}
ul.checks b { font-weight: 600; color: var(--s1); } ul.checks .fault b, ul.checks .note b { color: var(--s0); }
ul.checks small { display: block; overflow-wrap: anywhere; }
details { margin: 1.2rem 0; } summary { cursor: pointer; color: var(--s1); } details > .panel { margin-top: .8rem; }
#card {
  position: fixed; z-index: 1; width: max-content; max-width: min(21rem, calc(100vw - 16px)); padding: .8rem 1rem;
  background: var(--ink); color: var(--paper); border-radius: .5rem; font-size: .86rem; line-height: 1.5;
  pointer-events: none; box-shadow: 0 .3rem 1.2rem #0005; overflow-wrap: anywhere;
}
#card[hidden] { display: none; }
#card b { display: block; font: 600 1.3rem/1.35 var(--serif); white-space: pre-wrap; }
#card span { display: block; font-variant-numeric: tabular-nums; }
@media (max-width: 700px) {
  .maps, .sides, .mask { grid-template-columns: 1fr; }
  .maps svg.sight { width: 132px; } .maps small:nth-of-type(1) { order: -1; }
  .mask > b { padding: 0 0 .7rem; border-top: 0; } .mask > .head + .head { display: none; }
  .row, .panel { padding: .9rem; } .doc { padding-left: .7rem; }
  .tokens i { padding-left: 0; padding-right: 0; } .tokens .x { padding: .28em .3em; font-size: .68em; }
}
@media print { #card { display: none; } .row { break-inside: avoid; } }
"""

SCRIPT = """
const card = document.getElementById("card");
let on = null;
function lines(token) {
  const text = token.closest(".tokens"), place = [...text.querySelectorAll("i")].indexOf(token);
  const position = place + Number(text.dataset.first), id = token.dataset.i, group = token.closest("u");
  const loss = token.classList.contains("l"), found = [`token id ${id}`, `position ${position}`, text.dataset.of];
  const parts = group ? [...group.children] : [];
  if (group) found.push(`token ${parts.indexOf(token) + 1} of ${parts.length} of one character`);
  found.push(loss ? `label ${token.dataset.l || id}: carries loss` : "label \\u2212100: context, no loss");
  if (token.classList.contains("s")) found.push("stop token: how to end is learnt here");
  return found;
}
function show(token) {
  if (on) on.classList.remove("on");
  on = token;
  card.hidden = !token;
  if (!token) return;
  token.classList.add("on");
  const head = document.createElement("b");
  head.textContent = (token.closest("u") || token).dataset.t || token.textContent;
  card.replaceChildren(head, ...lines(token).map(line => {
    const span = document.createElement("span");
    span.textContent = line;
    return span;
  }));
  const box = token.getClientRects()[0], above = box.bottom + 12 + card.offsetHeight > innerHeight;
  card.style.left = Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 8)) + "px";
  card.style.top = (above ? Math.max(8, box.top - card.offsetHeight - 10) : box.bottom + 10) + "px";
}
const tokenAt = event => event.target.closest ? event.target.closest(".tokens i") : null;
document.addEventListener("pointerover", event => event.pointerType === "mouse" && show(tokenAt(event)));
document.addEventListener("click", event => show(tokenAt(event)));
document.addEventListener("scroll", () => show(null), {passive: true});
document.addEventListener("keydown", event => {
  const text = document.activeElement.closest && document.activeElement.closest(".tokens");
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (event.key === "Escape") show(null);
  if (!text || !step) return;
  const all = [...text.querySelectorAll("i")], next = all[on && text.contains(on) ? all.indexOf(on) + step : 0];
  if (next) show(next);
  event.preventDefault();
});
"""
