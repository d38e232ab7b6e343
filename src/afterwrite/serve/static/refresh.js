// Sections that stay current: the page is fetched again, and what has changed of them is put in its place. The browser
// parses it as a document of its own, in which nothing runs.

import { upgradeAll } from "./times.js";

const EVERY = 4_000;

function fetchPage() {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("GET", location.href);
    request.responseType = "document";
    request.timeout = 20_000;
    request.onload = () => (request.status === 200 && request.response ? done(request.response) : failed(new Error()));
    request.onerror = failed;
    request.ontimeout = failed;
    request.send();
  });
}

function busy(section) {
  const selection = document.getSelection();
  return section.contains(document.activeElement) || (!selection.isCollapsed && section.contains(selection.anchorNode));
}

const drawn = new Map();

async function refresh() {
  if (document.hidden) return;
  try {
    const page = await fetchPage();
    for (const section of document.querySelectorAll("[data-fresh]")) {
      const next = page.getElementById(section.id);
      if (!next || busy(section)) continue;
      const before = drawn.get(section.id);
      if (before === next.innerHTML) continue;
      drawn.set(section.id, next.innerHTML);
      const open = new Map([...section.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
      const made = document.importNode(next, true);
      for (const each of made.querySelectorAll("details[id]")) if (open.has(each.id)) each.open = open.get(each.id);
      section.replaceChildren(...made.childNodes);
      upgradeAll(section);
    }
  } catch {
    // It is tried again.
  }
}

setInterval(refresh, EVERY);
