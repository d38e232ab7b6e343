// A row of a list from an activity's JSON: the same that shown.py draws on the server, and always as text.

import { upgrade, utc } from "./times.js";

const DONE = { insert: "Created", update: "Changed", delete: "Deleted", truncate: "Emptied" };
const MISLEADING = /[\p{Cf}\p{Cc}\p{Co}\p{Cs}\p{Cn}\p{Zl}\p{Zp}]/gu;
const PLAIN = /^[A-Za-z0-9_~:@$,;=+!*'()-][A-Za-z0-9._~:@$,;=+!*'() -]*$/;
const BARE = /^[^\s",*\\]+$/;

/** What would mislead the eye is shown as its code. */
export function visible(text) {
  return text.replace(MISLEADING, (letter) => {
    if (letter === "\n" || letter === "\t") return letter;
    const number = letter.codePointAt(0);
    const hex = number.toString(16);
    if (number < 0x100) return `\\x${hex.padStart(2, "0")}`;
    return number < 0x10000 ? `\\u${hex.padStart(4, "0")}` : `\\U${hex.padStart(8, "0")}`;
  });
}

export function word(value) {
  return BARE.test(value) ? value : `"${value.replace(/\\/g, "\\\\").replace(/"/g, '\\"')}"`;
}

function parameters(values) {
  // As urlencode() on the server writes them.
  return new URLSearchParams(values).toString().replace(/\*/g, "%2A").replace(/%7E/g, "~");
}

export function searchHref(query, page = "/search") {
  return query ? `${page}?${parameters({ q: query })}` : page;
}

function segment(text) {
  return encodeURIComponent(text).replace(/%3A/g, ":").replace(/%40/g, "@").replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
}

export function entityHref(type, id) {
  if (!type || !id) return null;
  if (PLAIN.test(type) && PLAIN.test(id)) return `/entity/${segment(type)}/${segment(id)}`;
  return `/entity?${parameters({ type, id })}`;
}

export function initials(name) {
  const words = name.split("@", 1)[0].match(/[\p{L}\p{N}]+/gu) ?? [];
  if (words.length === 0) return "·";
  const first = [...words[0]];
  return words.length === 1 ? first.slice(0, 2).join("") : first[0] + [...words[1]][0];
}

export function hue(name) {
  let value = 7;
  for (const letter of name) value = (Math.imul(value, 31) + letter.codePointAt(0)) >>> 0;
  return value % 8;
}

function detail(it) {
  if (it.kind !== "change") return null;
  const summary = it.summary ?? "";
  const at = summary.indexOf(": ");
  const told = at < 0 ? "" : summary.slice(at + 2);
  if (told || !it.changed?.length) return told.replaceAll(" -> ", " → ") || null;
  const more = it.changed.length - 4;
  const shown = it.changed.slice(0, 4).join(", ");
  return more > 0 ? `${shown} and ${more} more` : shown;
}

/** What a row says, from an activity as the API gives it. */
export function show(it) {
  const entity = it.entity_type === null ? null : it.entity_id === null ? it.entity_type : `${it.entity_type}/${it.entity_id}`;
  const failed = it.outcome === "failure";
  const title = it.operation ? `${DONE[it.operation]} ${entity ?? it.relation}` : it.summary || it.action;
  const sign = it.operation ?? it.kind;
  return {
    title,
    href: `/activity/${it.id}`,
    sign: failed ? "failure" : sign,
    says: failed ? `${sign}, failed` : sign,
    failed,
    action: it.action === title || it.action === `${it.entity_type}.${sign}` ? null : it.action,
    entity: entity && !title.includes(entity) ? entity : null,
    entityHref: entityHref(it.entity_type, it.entity_id),
    detail: detail(it),
    actor: it.actor_id,
    actorHref: it.actor_id === null ? null : searchHref(`actor:${word(it.actor_id)}`),
  };
}

function part(kind, text, href = null) {
  const made = document.createElement(href ? "a" : "span");
  made.className = kind;
  if (href) made.setAttribute("href", href);
  made.textContent = visible(text);
  return made;
}

const blank = () => document.getElementById("blank-row").content.firstElementChild.cloneNode(true);
const icon = (name) => document.querySelector(`template[data-icon="${name}"]`).content.firstElementChild.cloneNode(true);

/** The row as an element. */
export function makeRow(it) {
  const said = show(it);
  const row = blank();
  row.dataset.id = it.id;
  const time = row.querySelector("time");
  time.dateTime = it.occurred_at;
  time.title = utc(it.occurred_at);
  time.dataset.form = "row";
  upgrade(time);
  const sign = row.querySelector(".sign");
  sign.classList.add(said.sign);
  sign.prepend(icon(said.sign));
  sign.lastElementChild.textContent = said.says;
  const title = row.querySelector(".title");
  title.setAttribute("href", said.href);
  title.textContent = visible(said.title);
  const meta = row.querySelector(".meta");
  if (it.from_lake) meta.append(part("from-lake", "from the lake"));
  if (said.failed) meta.append(part("failed", "failed"));
  if (said.entity) meta.append(part("entity", said.entity, said.entityHref));
  else if (said.entityHref) meta.append(part("entity", "history", said.entityHref));
  if (said.action) meta.append(part("action", said.action));
  if (said.detail) meta.append(part("detail", said.detail));
  if (said.actor) {
    const actor = document.getElementById("blank-actor").content.firstElementChild.cloneNode(true);
    actor.setAttribute("href", said.actorHref);
    actor.firstElementChild.classList.add(`hue-${hue(said.actor)}`);
    actor.firstElementChild.textContent = visible(initials(said.actor));
    actor.lastElementChild.textContent = visible(said.actor);
    row.querySelector(".who").append(actor);
  }
  return row;
}

/** What may be missing behind a page's rows, and why. */
export function makeGap(text) {
  const gap = document.createElement("li");
  gap.className = "gap";
  const said = document.createElement("span");
  said.textContent = visible(text);
  gap.append(icon("note"), said);
  return gap;
}
