/* What the pages of the ledger do in a browser, beyond what they are without it: times in the reader's zone, a button
   that copies a command, and a board that is asked for only while somebody looks. */
"use strict";

const forms = {
  clock: new Intl.DateTimeFormat(undefined, { timeStyle: "medium" }),
  date: new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" }),
};

function furnish(root) {
  for (const time of root.querySelectorAll("time[data-form]")) {
    const form = forms[time.dataset.form];
    if (form) time.textContent = form.format(new Date(time.dateTime));
  }
  if (navigator.clipboard) {
    for (const button of root.querySelectorAll("button[data-copy]")) button.hidden = false;
  }
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

const live = document.getElementById("live");
if (live) {
  const stale = document.getElementById("stale");
  live.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) htmx.trigger(live, "look");
  });
  live.addEventListener("htmx:afterRequest", (event) => {
    stale.hidden = event.detail.successful;
  });
  document.addEventListener("htmx:oobAfterSwap", () => furnish(document));
}

furnish(document);
