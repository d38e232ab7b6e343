// The history slider: the row as it was at each moment of its history, without leaving the page.

import { visible } from "./row.js";
import { upgrade, utc } from "./times.js";

const slider = document.getElementById("slider");
const input = document.getElementById("moment");
const body = document.querySelector("#row tbody");
let timer = 0;
let asked = 0;

function line(field) {
  const row = document.createElement("tr");
  if (field.touched) row.className = "touched";
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = visible(field.name);
  const cell = document.createElement("td");
  if (field.unsure) {
    const none = document.createElement("span");
    none.className = "none";
    none.textContent = field.unsure;
    cell.append(none);
  } else cell.textContent = visible(field.value);
  row.append(head, cell);
  return row;
}

async function show(at) {
  const mine = ++asked;
  const answer = await fetch(`${input.dataset.of}&${new URLSearchParams({ at })}`);
  if (!answer.ok || mine !== asked) return;
  const told = await answer.json();
  body.replaceChildren(...told.fields.map(line));
  const said = document.getElementById("row-said");
  said.textContent = told.said;
  const time = document.querySelector("#row-at time");
  time.dateTime = told.at;
  time.title = utc(told.at);
  upgrade(time);
  for (const step of document.querySelectorAll("#steps > li")) {
    const link = step.querySelector("[data-at]");
    const here = link?.dataset.at === at;
    step.classList.toggle("at", here);
    if (here) link.setAttribute("aria-current", "true");
    else link?.removeAttribute("aria-current");
  }
  const url = new URL(location.href);
  url.searchParams.set("at", at);
  history.replaceState(null, "", url);
}

if (slider) {
  const moments = input.dataset.moments.split(" ");
  slider.hidden = false;
  const name = () => input.setAttribute("aria-valuetext", `${Number(input.value) + 1} of ${moments.length}`);
  name();
  input.addEventListener("input", () => {
    name();
    clearTimeout(timer);
    timer = setTimeout(() => show(moments[Number(input.value)]), 60);
  });
  document.getElementById("steps").addEventListener("click", (event) => {
    const link = event.target.closest("[data-at]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const place = moments.indexOf(link.dataset.at);
    if (place < 0) return;
    event.preventDefault();
    input.value = String(place);
    name();
    show(moments[place]);
  });
}
