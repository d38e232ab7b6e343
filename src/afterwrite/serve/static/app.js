// What every page has: the viewer's times, light or dark, copying, and the keyboard.

import { suggest } from "./suggest.js";
import { keepCurrent } from "./times.js";

const toast = document.querySelector(".toast");
let toasted = 0;

export function say(text) {
  clearTimeout(toasted);
  toast.textContent = text;
  toast.hidden = false;
  toasted = setTimeout(() => { toast.hidden = true; }, 2_200);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    say("The browser did not let us copy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy], [data-copy-link], [data-copy-of]");
  if (!button) return;
  if (button.dataset.copy !== undefined) copy(button.dataset.copy);
  else if (button.dataset.copyOf) copy(document.getElementById(button.dataset.copyOf).textContent);
  else copy(location.href);
});

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  document.querySelector('meta[name="color-scheme"]').content = next;
  document.cookie = `afterwrite_theme=${next}; path=/; max-age=31536000; samesite=strict`;
}

const help = document.getElementById("help");
for (const button of document.querySelectorAll("[data-theme-button]")) {
  button.hidden = false;
  button.addEventListener("click", switchTheme);
}
for (const button of document.querySelectorAll("[data-help]")) {
  button.hidden = false;
  button.addEventListener("click", () => help.showModal());
}

const query = document.getElementById("q");
if (query?.dataset.suggest) suggest(query);

// Of a chart over time that does not fit, the newest end is shown.
for (const chart of document.querySelectorAll("[data-end]")) chart.scrollLeft = chart.scrollWidth;

const PLACES = { l: "/", s: "/search", o: "/overview", m: "/migration", h: "/health" };
let going = 0;

function step(by) {
  const titles = [...document.querySelectorAll(".rows .title, .steps .title")];
  if (titles.length === 0) return;
  const row = document.activeElement?.closest(".row, .steps > li");
  const at = row ? titles.findIndex((each) => row.contains(each)) : -1;
  const next = titles[Math.min(titles.length - 1, Math.max(0, at < 0 ? 0 : at + by))];
  next.focus({ preventScroll: true });
  next.closest(".row, li").scrollIntoView({ block: "nearest" });
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "Escape" && typing) { typing.blur(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (Date.now() - going < 1_000 && PLACES[event.key]) {
    const link = document.querySelector(`.nav a[href="${PLACES[event.key]}"]`);
    if (link) { event.preventDefault(); link.click(); }
    going = 0;
    return;
  }
  switch (event.key) {
    case "/":
      if (!query) return;
      query.focus();
      query.setSelectionRange(query.value.length, query.value.length);
      break;
    case "j": step(1); break;
    case "k": step(-1); break;
    case "g": going = Date.now(); break;
    case "t": switchTheme(); break;
    case "?": help.showModal(); break;
    case "p": document.getElementById("pause")?.click(); break;
    default: return;
  }
  event.preventDefault();
});

keepCurrent();
