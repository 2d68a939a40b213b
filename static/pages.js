/* What the pages of the ledger do in a browser, beyond what they are without it: times in the reader's zone, durations
   that tick, a button that copies a command, and an open page that is brought up to date while somebody looks.
   pages/fragments.py says how. */
"use strict";

const live = document.getElementById("live");

// Time: the server's, as a reader's clock may be minutes off.

const page = performance.getEntriesByType("navigation")[0];
const sent = Date.now() - (performance.now() - (page ? page.responseStart : 0));
let ahead = live ? Date.parse(live.dataset.now) - sent : 0;
const now = () => Date.now() + ahead;

// The zone: the server shows and filters by the one that the cookie names, and UTC without it. At the first visit the
// cookie is set, and what the server has written is put into the reader's zone. A zone that the server does not know,
// or a cookie that the browser does not keep, leaves everything as the server has it, so that rows and filters agree.
const root = document.documentElement, own = Intl.DateTimeFormat().resolvedOptions().timeZone;
const cookie = `tz=${own}`, kept = () => document.cookie.split("; ").includes(cookie);
let zone = root.dataset.zone;
if (own && own !== zone && !kept()) {
  document.cookie = `${cookie}; path=/; max-age=31536000; samesite=lax${location.protocol === "https:" ? "; secure" : ""}`;
  if (kept()) zone = own;
}
for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = zone;
const shape = new Intl.DateTimeFormat("en-US", {
  timeZone: zone, hourCycle: "h23", timeZoneName: "short", year: "numeric", month: "2-digit", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const parts = (at) => Object.fromEntries(shape.formatToParts(at).map((each) => [each.type, each.value]));

const forms = {
  clock: zone === root.dataset.zone ? null : (at) => {
    const p = parts(at);
    return `${p.hour}:${p.minute}:${p.second} ${p.timeZoneName}`;
  },
  date: zone === root.dataset.zone ? null : (at) => {
    const p = parts(at);
    return `${p.year}-${p.month}-${p.day} ${p.hour}:${p.minute} ${p.timeZoneName}`;
  },
  age: (at) => age((now() - at) / 1000),
  elapsed: (at) => took((now() - at) / 1000),
};

// The words for a number of seconds are those of ledger/humanize.py.
function age(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function took(seconds) {
  const whole = Math.max(0, Math.round(seconds)), minutes = Math.floor(whole / 60);
  if (whole >= 3600) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function tell(root) {
  for (const time of root.querySelectorAll("time[data-form]")) {
    const form = forms[time.dataset.form];
    if (!form) continue; // as the server has written it
    const text = form(new Date(time.dateTime));
    if (time.textContent !== text && !selected(time)) time.textContent = text;
  }
  for (const each of root.querySelectorAll("[data-since]")) {
    const since = Date.parse(each.dataset.since), elapsed = Math.max(1, now() - since);
    if (each.dataset.typical) each.value = Math.min(99, Math.floor(elapsed / 10 / each.dataset.typical));
    if (each.dataset.from) {
      // A step on the line of a deployment that runs: from and to, in per cent of the time until now.
      const from = 100 * (Date.parse(each.dataset.from) - since) / elapsed;
      const to = each.dataset.to ? 100 * (Date.parse(each.dataset.to) - since) / elapsed : 100;
      const width = Math.max(1, Math.min(100, to) - from);
      each.setAttribute("x", Math.max(0, Math.min(from, 100 - width)).toFixed(1));
      each.setAttribute("width", width.toFixed(1));
    }
  }
}

function furnish(root) {
  tell(root);
  if (navigator.clipboard) {
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
  }
}

// Whether the reader has selected some of the element's text.
function selected(element) {
  const selection = getSelection();
  if (selection.isCollapsed) return false;
  const range = selection.getRangeAt(0), part = document.createRange();
  if (!range.intersectsNode(element)) return false;
  part.selectNodeContents(element);
  if (range.compareBoundaryPoints(Range.START_TO_START, part) > 0) part.setStart(range.startContainer, range.startOffset);
  if (range.compareBoundaryPoints(Range.END_TO_END, part) < 0) part.setEnd(range.endContainer, range.endOffset);
  return part.toString() !== "";
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-copy]");
  if (!button) return;
  const command = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(command); // refused: it is chosen, and a key away
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

if (live) {
  const stale = document.getElementById("stale"), held = document.getElementById("held");
  let waits = false; // something that has changed is not swapped, as some of it is selected
  live.addEventListener("htmx:configRequest", (event) => {
    event.detail.parameters.seen = Array.from(document.querySelectorAll("[data-piece]"), (each) => each.dataset.piece);
  });
  live.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden) event.preventDefault();
    else waits = false;
  });
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const { target, fragment } = event.detail;
    if (selected(target)) {
      waits = true; // its digest stays too, so that the next answer has it again
      event.detail.shouldSwap = false;
      return;
    }
    for (const open of target.querySelectorAll("details[id][open]")) {
      fragment.getElementById(open.id)?.setAttribute("open", "");
    }
    furnish(fragment);
  });
  live.addEventListener("htmx:afterRequest", (event) => {
    const { successful, xhr } = event.detail;
    stale.hidden = successful;
    stale.querySelector("span").textContent = xhr.status
      ? `The server answered with an error (${xhr.status}). Showing the last known state.`
      : "Can’t reach the server. Showing the last known state.";
    held.hidden = !waits;
    const answered = Date.parse(xhr.getResponseHeader("Date")); // in whole seconds
    if (successful && Math.abs(answered - now()) > 2000) ahead = answered - Date.now();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger(live, "look");
  });
  document.addEventListener("selectionchange", () => {
    if (waits && getSelection().isCollapsed) htmx.trigger(live, "look");
  });
  setInterval(() => tell(document), 1000);
}

furnish(document);
