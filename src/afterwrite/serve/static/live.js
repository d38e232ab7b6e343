// The stream: rows as they come, held while somebody reads, and never more of them than a page can carry.

import { makeRow } from "./row.js";

const MOST_ROWS = 200;
const MOST_WAITING = 200;
const DRAW_EVERY = 200;

const stream = document.getElementById("stream");
const rows = document.getElementById("rows");
const state = document.getElementById("state");
const pause = document.getElementById("pause");
const fresh = document.getElementById("fresh");
const nothing = document.getElementById("nothing");

let paused = false;
let waiting = [];
let missed = 0;
let timer = 0;
let source = null;
let position = stream?.dataset.position;

// --- reading --------------------------------------------------------------------------------------------------------

function reading() {
  if (paused) return "paused";
  if (rows.contains(document.activeElement)) return "paused while you are in the list";
  // The whole panel, with the button that tells of new ones: it may come up right under the pointer.
  if (stream.matches(":hover")) return "paused while you look";
  if (rows.getBoundingClientRect().top < -40) return "paused while you read below";
  if (!document.getSelection().isCollapsed && rows.contains(document.getSelection().anchorNode)) return "paused while you select";
  return null;
}

function tell() {
  const why = reading();
  if (source?.readyState === EventSource.OPEN) {
    state.dataset.state = why ? "paused" : "live";
    state.textContent = why ?? "live";
  } else {
    state.dataset.state = "away";
    state.textContent = "connecting again";
  }
  fresh.hidden = missed === 0 || !why;
  fresh.lastElementChild.textContent = `${missed.toLocaleString("en")} new`;
}

// --- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  timer = 0;
  if (!reading()) show();
  tell();
}

function show() {
  if (waiting.length === 0) return;
  const known = new Set([...rows.children].map((row) => row.dataset.id));
  const made = waiting.filter((it) => !known.has(it.id)).map((it) => {
    const row = makeRow(it);
    row.classList.add("fresh");
    return row;
  });
  waiting = [];
  missed = 0;
  rows.prepend(...made.reverse());
  while (rows.children.length > MOST_ROWS) rows.lastElementChild.remove();
  nothing.hidden = true;
  const bounded = document.getElementById("bounded");
  if (bounded) bounded.textContent = `The newest ${rows.children.length} of what fits.`;
}

function take(it) {
  waiting.push(it);
  missed += 1;
  if (waiting.length > MOST_WAITING) waiting.splice(0, waiting.length - MOST_WAITING);
  count();
  if (!timer) timer = setTimeout(draw, DRAW_EVERY);
}

fresh.addEventListener("click", () => {
  paused = false;
  press();
  document.activeElement?.blur();
  show();
  scrollTo({ top: 0, behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  tell();
});

function press() {
  pause.setAttribute("aria-pressed", String(paused));
  pause.lastElementChild.textContent = paused ? "Go on" : "Pause";
}

pause.addEventListener("click", () => {
  paused = !paused;
  press();
  draw();
});

for (const kind of ["mouseleave", "mouseenter", "focusin", "focusout"]) stream?.addEventListener(kind, () => setTimeout(draw, 60));
addEventListener("scroll", () => { if (!timer) timer = setTimeout(draw, DRAW_EVERY); }, { passive: true });
document.addEventListener("selectionchange", () => { if (!timer) timer = setTimeout(draw, DRAW_EVERY); });

// --- the rate -------------------------------------------------------------------------------------------------------

const chart = document.getElementById("rate");
const rateNow = document.getElementById("rate-now");
const minutes = chart.dataset.minutes.split(",").map(Number);
let minute = Math.floor(new Date(chart.dataset.until) / 60_000);
let drawn = 0;

function count() {
  turn();
  minutes[minutes.length - 1] += 1;
  if (!drawn) drawn = setTimeout(drawRate, 500);
}

function turn() {
  const now = Math.floor(Date.now() / 60_000);
  for (; minute < now; minute += 1) { minutes.push(0); minutes.shift(); }
}

function drawRate() {
  drawn = 0;
  const most = Math.max(4, ...minutes);
  const wide = 960 / minutes.length;
  const bars = minutes.map((value, place) => {
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const tall = value ? Math.max(2, (84 * value) / most) : 1;
    for (const [name, each] of Object.entries({ x: place * wide + 1, y: 88 - tall, width: wide - 2, height: tall })) bar.setAttribute(name, each.toFixed(1));
    bar.setAttribute("class", place === minutes.length - 1 ? "bar now" : "bar");
    return bar;
  });
  chart.replaceChildren(...bars);
  const last = minutes.at(-1);
  rateNow.textContent = `${last.toLocaleString("en")} in this minute, at most ${Math.max(...minutes).toLocaleString("en")} in the last ${minutes.length}`;
}

setInterval(() => { if (!document.hidden) { turn(); drawRate(); } }, 15_000);

// --- the feed -------------------------------------------------------------------------------------------------------

function open() {
  const url = new URL(stream.dataset.feed, location.href);
  url.searchParams.set("last_event_id", position);
  source = new EventSource(url);
  source.addEventListener("open", tell);
  source.addEventListener("error", tell);
  source.addEventListener("activity", (event) => {
    position = event.lastEventId || position;
    const told = JSON.parse(event.data);
    for (const it of Array.isArray(told) ? told : [told]) take(it);
  });
  source.addEventListener("resync", () => {
    // What we stand behind is too old to be resumed: the page as it is now is the newest again.
    source.close();
    location.reload();
  });
}

if (stream) {
  pause.hidden = false;
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => { if (event.persisted) open(); });
  tell();
}
