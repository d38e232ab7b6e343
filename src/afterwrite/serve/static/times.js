// Times in the viewer's zone, with UTC on hover, and how long ago. Without this file they stand there in UTC.

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const year = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const full = new Intl.DateTimeFormat(undefined, {
  year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit",
  hourCycle: "h23", timeZoneName: "short",
});
const ago = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const UNITS = [["day", 86_400], ["hour", 3_600], ["minute", 60]];

export function relative(at, now = Date.now()) {
  const seconds = (at - now) / 1000;
  for (const [unit, size] of UNITS) {
    if (Math.abs(seconds) >= size) return ago.format(Math.trunc(seconds / size), unit).replace(".", "");
  }
  return Math.abs(seconds) < 5 ? "just now" : ago.format(Math.round(seconds), "second").replace(".", "");
}

function dated(at, now, timed) {
  if (Math.abs(now - at) < 20 * 3_600_000) return relative(at, now);
  const date = (now - at > 300 * 86_400_000 ? year : day).format(at);
  return timed ? `${date}, ${clock.format(at).slice(0, 5)}` : date;
}

/** UTC in words, as the server writes it into the title. */
export function utc(text) {
  return `${text.slice(0, 10)} ${text.slice(11, 23)} UTC`;
}

/** Writes one <time> as its viewer reads it. */
export function upgrade(element, now = Date.now()) {
  const at = new Date(element.dateTime);
  if (Number.isNaN(at.getTime())) return;
  switch (element.dataset.form) {
    case "row":
      element.textContent = clock.format(at);
      if (element.nextElementSibling) element.nextElementSibling.textContent = dated(at, now, false);
      break;
    case "clock":
      element.textContent = clock.format(at);
      break;
    case "relative":
      element.textContent = dated(at, now, true);
      break;
    case "both":
      element.textContent = `${full.format(at)}, ${relative(at, now)}`;
      break;
    default:
      element.textContent = full.format(at);
  }
}

export function upgradeAll(root = document) {
  const now = Date.now();
  for (const element of root.querySelectorAll("time[datetime]")) upgrade(element, now);
}

export function keepCurrent() {
  upgradeAll();
  setInterval(() => {
    if (document.hidden) return;
    const now = Date.now();
    for (const element of document.querySelectorAll('time[data-form="row"], time[data-form="relative"], time[data-form="both"]')) {
      upgrade(element, now);
    }
  }, 10_000);
}
