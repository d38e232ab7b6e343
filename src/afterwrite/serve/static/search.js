// Thousands of found rows in the memory of a few hundred: a page of them is in the document only while it is near the
// window, and its place is kept by its height. Without this file there are links to the pages.

import { makeGap, makeRow } from "./row.js";
import { upgrade, upgradeAll, utc } from "./times.js";

const NEAR = "1600px 0px";
const found = document.getElementById("found");
const first = document.getElementById("rows");
const pages = document.getElementById("pages");

// Of each page: the list that holds it, the place that fetches it, and what lies beyond it.
const known = new Map();
let loading = false;

const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const page = known.get(entry.target);
    if (!page) continue;
    page.near = entry.isIntersecting;
    if (entry.isIntersecting) fill(page);
    else empty(page);
  }
}, { rootMargin: NEAR });

const edges = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) extend();
}, { rootMargin: NEAR });

async function read(place) {
  const answer = await fetch(`${found.dataset.api}?${new URLSearchParams({ q: found.dataset.query, ...place })}`);
  if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  return answer.json();
}

function empty(page) {
  if (!page.filled || page.list.contains(document.activeElement)) return;
  page.list.style.height = `${page.list.getBoundingClientRect().height}px`;
  page.list.replaceChildren();
  page.filled = false;
}

async function fill(page) {
  if (page.filled || page.filling || !page.place) return;
  page.filling = true;
  try {
    const answer = await read(page.place);
    if (page.near) {
      page.list.replaceChildren(...drawn(answer));
      page.list.style.height = "";
      page.filled = true;
    }
  } catch (error) {
    trouble(error);
  }
  page.filling = false;
}

function add(list, place, older, newer, looked) {
  const page = { list, place, older, newer, looked, filled: true, filling: false, near: true };
  known.set(list, page);
  observer.observe(list);
  return page;
}

const ends = { top: null, bottom: null };

async function extend() {
  if (loading) return;
  loading = true;
  try {
    while (ends.bottom.older && !ends.bottom.looked && note.getBoundingClientRect().top < innerHeight + 1600) await append();
    while (ends.top.newer && ends.top.list.getBoundingClientRect().top > -1600) await prepend();
  } catch (error) {
    trouble(error);
  }
  loading = false;
  if (!ends.bottom.older) note.textContent = where;
  else if (ends.bottom.looked) offer(ends.bottom);
}

// Where no index answers, the server looks for so long and says how far it came: whether to go on is the viewer's choice.
function offer(page) {
  if (note.dataset.looked === page.looked) return;
  note.dataset.looked = page.looked;
  const time = document.createElement("time");
  time.dateTime = page.looked;
  time.title = utc(page.looked);
  time.dataset.form = "full";
  upgrade(time);
  const further = document.createElement("a");
  further.href = `/search?${new URLSearchParams({ q: found.dataset.query, older: page.older })}`;
  further.textContent = "Look further";
  further.addEventListener("click", (event) => {
    if (event.metaKey || event.ctrlKey || event.shiftKey) return;
    event.preventDefault();
    page.looked = null;
    note.textContent = "Looking further …";
    extend();
  });
  note.replaceChildren("Looked back to ", time, " so far. ", further);
}

function drawn(answer) {
  const rows = answer.items.map((it) => makeRow(it));
  return answer.gap ? [...rows, makeGap(answer.gap)] : rows;
}

function listOf(answer) {
  const list = document.createElement("ol");
  list.className = "rows";
  list.append(...drawn(answer));
  return list;
}

async function append() {
  const place = { older: ends.bottom.older };
  const answer = await read(place);
  where = answer.where;
  if (answer.items.length === 0) {
    ends.bottom.older = answer.older || null;
    ends.bottom.looked = answer.looked;
    if (answer.gap) ends.bottom.list.append(makeGap(answer.gap));
    return;
  }
  const list = listOf(answer);
  ends.bottom.list.after(list);
  ends.bottom = add(list, place, answer.older, answer.newer, answer.looked);
  note.textContent = "Fetching more …";
}

async function prepend() {
  const place = { newer: ends.top.newer };
  const answer = await read(place);
  if (answer.items.length === 0) { ends.top.newer = answer.newer || null; return; }
  const list = listOf(answer);
  const before = ends.top.list.getBoundingClientRect().top;
  ends.top.list.before(list);
  const moved = ends.top.list.getBoundingClientRect().top - before;
  if (moved) scrollBy(0, moved);
  ends.top = add(list, place, answer.older, answer.newer, null);
}

function trouble(error) {
  note.textContent = `More could not be fetched: ${error.message}. Scroll, and it is tried again.`;
}

// So that a reload, or Back, comes to what was looked at.
let remembered = 0;
function remember() {
  remembered = 0;
  const top = [...known.values()].find((page) => page.list.getBoundingClientRect().bottom > 80);
  if (!top) return;
  const url = new URL(location.href);
  url.searchParams.delete("older");
  url.searchParams.delete("newer");
  if (top.place) for (const [name, value] of Object.entries(top.place)) url.searchParams.set(name, value);
  if (url.href !== location.href) history.replaceState(null, "", url);
}

let note = null;
let where = first?.dataset.where ?? "";
if (found && first.children.length > 0) {
  const given = new URL(location.href).searchParams;
  const place = given.get("older") ? { older: given.get("older") } : given.get("newer") ? { newer: given.get("newer") } : null;
  const page = add(first, place, first.dataset.older || null, first.dataset.newer || null, first.dataset.looked || null);
  // The first page of all can be fetched again, too: it is what is older than the far future.
  page.place ??= { older: "" };
  ends.top = ends.bottom = page;
  note = document.createElement("p");
  note.className = "loading";
  note.setAttribute("role", "status");
  note.textContent = page.older ? "Fetching more …" : where;
  pages.replaceWith(note);
  if (page.looked) offer(page);
  edges.observe(note);
  addEventListener("scroll", () => {
    if (!remembered) remembered = setTimeout(remember, 300);
    extend();
  }, { passive: true });
  upgradeAll(found);
}
