/* Creates and uses passkeys: https://www.w3.org/TR/webauthn-3/. Serves each form with data-passkey="create" or "get": its
   button, hidden without this script, asks the browser, and its field `credential` takes the answer to the server. Its
   note, which says that passkeys require JavaScript, then shows what went wrong. */
"use strict";

const supported = Boolean(window.PublicKeyCredential?.parseCreationOptionsFromJSON);

// The challenge: in the page, or at an address, so that a page that hardly anybody signs in from keeps no session.
const options = async (form) => {
  if (!form.dataset.options) return JSON.parse(document.getElementById("js_data").textContent);
  const response = await fetch(form.dataset.options, {signal: AbortSignal.timeout(10000)});
  if (response.status === 429) throw new Error("Too many attempts. Wait a minute and try again.");
  if (!response.ok) throw new Error("Can't reach the server. Try again.");
  return response.json();
};

const ask = async (form) => {
  const data = await options(form);
  if (form.dataset.passkey === "create") {
    const publicKey = PublicKeyCredential.parseCreationOptionsFromJSON(data.creation_options.publicKey);
    return navigator.credentials.create({publicKey});
  }
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(data.request_options.publicKey);
  return navigator.credentials.get({publicKey});
};

const explain = (error) => {
  if (error.name === "InvalidStateError") return "This device already has a passkey for your account.";
  if (error.name === "SecurityError") return "Passkeys do not work at this address. They require HTTPS and a host name.";
  if (error instanceof DOMException) return "No passkey was used: cancelled, timed out, or none for this site.";
  return error.message;
};

for (const form of document.querySelectorAll("form[data-passkey]")) {
  const note = form.querySelector("[data-note]"), button = form.querySelector("button");
  const say = (text) => {
    note.textContent = text;
    note.hidden = !text;
  };
  if (!supported) {
    say("Passkeys require HTTPS and a recent browser.");
    continue;
  }
  say("");
  button.hidden = false;
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    say("");
    button.disabled = true;
    try {
      form.elements.credential.value = JSON.stringify(await ask(form));
      form.submit();
    } catch (error) {
      say(explain(error));
      button.disabled = false;
    }
  });
}
