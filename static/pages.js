/* What a browser adds to the pages of the ledger and the status page: times in the reader's zone, durations that tick, a
   button that copies a command, and live updates of an open page. pages/fragments.py explains the live updates. */
"use strict";

const live = document.getElementById("live");

// The time: the server's, since a reader's clock may be minutes off.

const page = performance.getEntriesByType("navigation")[0];
const sent = Date.now() - (performance.now() - (page ? page.responseStart : 0));
let clockOffset = live ? Date.parse(live.dataset.now) - sent : 0;
const now = () => Date.now() + clockOffset;

// The zone: the server shows times and reads filters in the one that the cookie names, or else in UTC. The first visit
// sets the cookie and rewrites the server's times into the reader's zone. If the server does not know the zone, or the
// browser does not keep the cookie, everything stays as the server has it, so that rows and filters agree.
const root = document.documentElement, own = Intl.DateTimeFormat().resolvedOptions().timeZone;
const cookie = `tz=${own}`, stored = () => document.cookie.split("; ").includes(cookie);
let zone = root.dataset.zone;
if (own && own !== zone && !stored()) {
  document.cookie = `${cookie}; path=/; max-age=31536000; samesite=lax${location.protocol === "https:" ? "; secure" : ""}`;
  if (stored()) zone = own;
}
for (const name of document.querySelectorAll("[data-zone-name]")) name.textContent = zone;
const dateFormat = new Intl.DateTimeFormat("en-US", {
  timeZone: zone, hourCycle: "h23", timeZoneName: "short", year: "numeric", month: "2-digit", day: "2-digit",
  hour: "2-digit", minute: "2-digit", second: "2-digit",
});
const parts = (at) => Object.fromEntries(dateFormat.formatToParts(at).map((each) => [each.type, each.value]));

const formats = {
  clock: zone === root.dataset.zone ? null : (at) => {
    const p = parts(at);
    return `${p.hour}:${p.minute}:${p.second} ${p.timeZoneName}`;
  },
  date: zone === root.dataset.zone ? null : (at) => {
    const p = parts(at);
    return `${p.year}-${p.month}-${p.day} ${p.hour}:${p.minute} ${p.timeZoneName}`;
  },
  age: (at) => age((now() - at) / 1000),
  elapsed: (at) => duration((now() - at) / 1000),
};

// Both format a number of seconds as ledger/humanize.py does.
function age(seconds) {
  if (seconds < 60) return "just now";
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds)), minutes = Math.floor(whole / 60);
  if (whole >= 3600) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

function updateClocks(root) {
  for (const time of root.querySelectorAll("time[data-format]")) {
    const format = formats[time.dataset.format];
    if (!format) continue; // the server's text is right
    const text = format(new Date(time.dateTime));
    if (time.textContent !== text && !hasSelection(time)) time.textContent = text;
  }
  for (const each of root.querySelectorAll("[data-since]")) {
    const since = Date.parse(each.dataset.since), elapsed = Math.max(1, now() - since);
    if (each.dataset.typical) each.value = Math.min(99, Math.floor(elapsed / 10 / each.dataset.typical));
    if (each.dataset.from) {
      // A step on the timeline of a running deployment: start and end in per cent of the time until now.
      const from = 100 * (Date.parse(each.dataset.from) - since) / elapsed;
      const to = each.dataset.to ? 100 * (Date.parse(each.dataset.to) - since) / elapsed : 100;
      const width = Math.max(1, Math.min(100, to) - from);
      each.setAttribute("x", Math.max(0, Math.min(from, 100 - width)).toFixed(1));
      each.setAttribute("width", width.toFixed(1));
    }
  }
}

function enhance(root) {
  updateClocks(root);
  if (navigator.clipboard) {
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
  }
}

// Whether the reader has selected some of the element's text.
function hasSelection(element) {
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
    getSelection().selectAllChildren(command); // the browser refused: select it, so that one key copies it
    button.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

if (live) {
  const stale = document.getElementById("stale"), held = document.getElementById("held");
  let holding = false; // a fragment that changed is not swapped, since some of its text is selected
  live.addEventListener("htmx:configRequest", (event) => {
    event.detail.parameters.seen =
      Array.from(document.querySelectorAll("[data-fragment]"), (each) => each.dataset.fragment);
  });
  live.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden) event.preventDefault();
    else holding = false;
  });
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const { target, fragment } = event.detail;
    if (hasSelection(target)) {
      holding = true; // its digest stays as well, so that the next response has it again
      event.detail.shouldSwap = false;
      return;
    }
    for (const open of target.querySelectorAll("details[id][open]")) {
      fragment.getElementById(open.id)?.setAttribute("open", "");
    }
    enhance(fragment);
  });
  live.addEventListener("htmx:afterRequest", (event) => {
    const { successful, xhr } = event.detail;
    stale.hidden = successful;
    stale.querySelector("span").textContent = xhr.status
      ? `The server returned an error (${xhr.status}). Showing the last known state.`
      : "Can’t reach the server. Showing the last known state.";
    held.hidden = !holding;
    const answered = Date.parse(xhr.getResponseHeader("Date")); // in whole seconds
    if (successful && Math.abs(answered - now()) > 2000) clockOffset = answered - Date.now();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger(live, "poll");
  });
  document.addEventListener("selectionchange", () => {
    if (holding && getSelection().isCollapsed) htmx.trigger(live, "poll");
  });
  setInterval(() => updateClocks(document), 1000);
}

enhance(document);
