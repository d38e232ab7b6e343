// Suggestions under the query box: keys first, then the values of a key, from what is stored.

import { visible } from "./row.js";

export function suggest(input) {
  const list = document.createElement("ul");
  list.className = "choices";
  list.id = "choices";
  list.hidden = true;
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-label", "Suggestions");
  input.after(list);
  for (const [name, value] of Object.entries({
    role: "combobox", "aria-autocomplete": "list", "aria-expanded": "false", "aria-controls": "choices",
  })) input.setAttribute(name, value);

  let chosen = -1;
  let timer = 0;
  let asked = 0;
  let choices = [];

  function close() {
    clearTimeout(timer);
    asked += 1;
    list.hidden = true;
    chosen = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(place) {
    chosen = place;
    [...list.children].forEach((each, at) => each.setAttribute("aria-selected", String(at === place)));
    if (place >= 0) {
      input.setAttribute("aria-activedescendant", `choice-${place}`);
      list.children[place].scrollIntoView({ block: "nearest" });
    } else input.removeAttribute("aria-activedescendant");
  }

  function take(place) {
    const choice = choices[place];
    const rest = input.value.slice(choice.end);
    const open = /[:./]$/.test(choice.text);
    input.value = input.value.slice(0, choice.start) + choice.text + (open || rest.startsWith(" ") ? "" : " ") + rest;
    const at = choice.start + choice.text.length + (open ? 0 : 1);
    input.setSelectionRange(at, at);
    input.focus();
    close();
    if (open) ask();
  }

  function draw(found) {
    choices = found;
    list.replaceChildren(...found.map((choice, place) => {
      const item = document.createElement("li");
      item.id = `choice-${place}`;
      item.setAttribute("role", "option");
      item.setAttribute("aria-selected", "false");
      const word = document.createElement("span");
      word.className = "word";
      word.textContent = visible(choice.text);
      const hint = document.createElement("span");
      hint.className = "hint";
      hint.textContent = choice.hint ? visible(choice.hint) : "";
      item.append(word, hint);
      item.addEventListener("mousedown", (event) => { event.preventDefault(); take(place); });
      return item;
    }));
    list.hidden = found.length === 0;
    chosen = -1;
    input.setAttribute("aria-expanded", String(found.length > 0));
    input.removeAttribute("aria-activedescendant");
  }

  async function ask() {
    const mine = ++asked;
    const end = input.selectionStart ?? input.value.length;
    const before = input.value.slice(0, end);
    try {
      const answer = await fetch(`${input.dataset.suggest}?${new URLSearchParams({ q: before })}`);
      if (!answer.ok || mine !== asked || document.activeElement !== input) return;
      const found = await answer.json();
      draw(found.items.map((each) => ({ ...each, start: each.start ?? lastWord(before), end })));
    } catch {
      // The box works without suggestions.
    }
  }

  function lastWord(text) {
    let quoted = false;
    let start = 0;
    for (let at = 0; at < text.length; at += 1) {
      if (text[at] === "\\" && quoted) at += 1;
      else if (text[at] === '"') quoted = !quoted;
      else if (/\s/.test(text[at]) && !quoted) start = at + 1;
    }
    return start;
  }

  input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 110); });
  input.addEventListener("focus", () => { if (input.dataset.asked) return; input.dataset.asked = "1"; });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" && list.hidden) { event.preventDefault(); ask(); return; }
    if (list.hidden) return;
    if (event.key === "ArrowDown") { event.preventDefault(); mark((chosen + 1) % choices.length); }
    else if (event.key === "ArrowUp") { event.preventDefault(); mark((chosen <= 0 ? choices.length : chosen) - 1); }
    else if ((event.key === "Enter" || event.key === "Tab") && chosen >= 0) { event.preventDefault(); take(chosen); }
    else if (event.key === "Tab") close();
    else if (event.key === "Escape") { event.stopPropagation(); close(); }
  });
}
