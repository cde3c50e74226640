// What pages do beyond HTML: times in the browser's zone, copying, a dialog before what cannot be undone, a warning before
// leaving a page that shows a key or has what is not saved. Everything but copying works without it.
"use strict";

// What of `2026-01-31 08:00:00.123` each form shows: those of log_parts.html. A date stands for its midnight; a day of UTC
// begins at another time in most zones, and that is shown.
const TIME_FORMS = {
  full: [0, 19], precise: [0, 23], date: [0, 10], date_minute: [0, 16],
  minute: [11, 16], second: [11, 19], day_minute: [5, 16], day_second: [5, 19],
};

function localText(instant, form = "full") {
  const padded = (number, digits = 2) => String(number).padStart(digits, "0");
  const date = [padded(instant.getFullYear(), 4), padded(instant.getMonth() + 1), padded(instant.getDate())].join("-");
  const time = [instant.getHours(), instant.getMinutes(), instant.getSeconds()].map((number) => padded(number)).join(":");
  const exact = `${date} ${time}.${padded(instant.getMilliseconds(), 3)}`;
  const shown = form === "date" && !exact.endsWith(" 00:00:00.000") ? "date_minute" : form;
  return exact.slice(...TIME_FORMS[shown]);
}

// What can hold no <time>, the titles of a picture.
function showLocalTitles() {
  for (const title of document.querySelectorAll("svg title")) {
    title.textContent = title.textContent.replace(/\d{4}-\d\d-\d\dT[\d:.]+Z/g, (text) => localText(new Date(text)));
  }
}

// Every <time> has UTC as its text; show the browser's zone, and leave UTC to hovering. Also called by logs.js.
// What says "(UTC)" besides is not true any more.
function showLocalTimes(root) {
  for (const zone of root.querySelectorAll("[data-zone]")) zone.hidden = true;
  for (const time of root.querySelectorAll("time[datetime]")) {
    const instant = new Date(time.dateTime);
    if (!Number.isNaN(instant.valueOf())) time.textContent = localText(instant, time.dataset.form);
  }
}

// Fields for a time hold UTC for the server, and for people the zone that all other times are shown in. What names a
// zone, or is no time, such as 15m, stays as it is.
function prepareTimes() {
  const time = /^\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?$/;
  for (const field of document.querySelectorAll("input[data-time]")) {
    const stated = field.value.trim();
    const utc = stated.replace(/Z$/, "").replace(" ", "T");
    if (time.test(utc)) {
      const instant = new Date(utc.includes("T") ? `${utc}Z` : `${utc}T00:00Z`);
      const text = localText(instant);
      field.value = text;
      field.dataset.utc = JSON.stringify([text, stated]);  // more exact than what is shown
    }
    field.form.addEventListener("formdata", (event) => {
      const text = field.value.trim();
      const [shown, exact] = JSON.parse(field.dataset.utc ?? "[]");
      if (text === shown) event.formData.set(field.name, exact);
      else if (time.test(text)) {
        const instant = new Date(text.length > 10 ? text.replace(" ", "T") : `${text}T00:00`);
        if (!Number.isNaN(instant.valueOf())) event.formData.set(field.name, instant.toISOString());
      }
    });
  }
}

function prepareCopying() {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const label = button.innerHTML;
    const announced = document.getElementById(`${button.dataset.copy}-copied`);
    const say = (text) => { button.textContent = announced.textContent = text; };
    let timer;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        say("Copied");
        button.dispatchEvent(new CustomEvent("dashboard:copied", { bubbles: true }));
      } catch {
        // Not a secure context, or not allowed: select it, for the keyboard.
        getSelection().selectAllChildren(source);
        say("Selected");
      }
      clearTimeout(timer);
      timer = setTimeout(() => {
        button.innerHTML = label;
        announced.textContent = "";
      }, 2000);
    });
  }
}

function prepareDialogs() {
  for (const opener of document.querySelectorAll("[data-dialog]")) {
    const dialog = document.getElementById(opener.dataset.dialog);
    if (!dialog?.showModal) continue;
    opener.addEventListener("click", (event) => {
      event.preventDefault();
      dialog.showModal();
    });
    dialog.querySelector("[data-close]")?.addEventListener("click", () => dialog.close());
  }
}

function prepareLeaving() {
  const page = document.querySelector("[data-warn-leaving]");
  if (!page) return;
  const warn = (event) => event.preventDefault();
  addEventListener("beforeunload", warn);
  page.addEventListener("dashboard:copied", () => removeEventListener("beforeunload", warn));
  // The browser may keep the page in memory, for going back; the key is not to be there.
  addEventListener("pagehide", () => page.replaceChildren());
  addEventListener("pageshow", (event) => { if (event.persisted) location.replace("/projects"); });
}

// A form whose fields of a name make a list, `base` being the one that is saved: what was typed is not left without a word.
function prepareUnsaved() {
  const form = document.querySelector("form[data-unsaved]");
  if (!form) return;
  let isDiscarded = false;
  const lines = (text) => text.split(/\s+/).filter(Boolean).join("\n");
  form.querySelector("[data-discard]").addEventListener("click", () => { isDiscarded = true; });
  addEventListener("pageshow", () => { isDiscarded = false; });
  addEventListener("beforeunload", (event) => {
    const data = new FormData(form);
    const isSaved = lines(data.getAll(form.dataset.unsaved).join("\n")) === lines(data.get("base"));
    if (!isSaved && !isDiscarded && !form.dataset.sent) event.preventDefault();
  });
}

// Enter in a field that has a button of its own presses that, and not the form's first one.
function prepareEnter() {
  for (const field of document.querySelectorAll("input[data-enter]")) {
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      document.getElementById(field.dataset.enter).click();
    });
  }
}

// A form that was sent is not sent again by a second click.
function prepareForms() {
  for (const form of document.querySelectorAll("form[method=post]")) {
    form.addEventListener("submit", (event) => {
      if (form.dataset.sent) event.preventDefault();
      form.dataset.sent = "yes";
      event.submitter?.setAttribute("aria-busy", "true");
      setTimeout(revive, 15_000, form);  // whoever pressed Escape may try again
    });
  }
  function revive(form) {
    delete form.dataset.sent;
    for (const button of form.querySelectorAll("[aria-busy]")) button.removeAttribute("aria-busy");
  }
  addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach(revive));
}

document.addEventListener("DOMContentLoaded", () => {
  showLocalTimes(document);
  showLocalTitles();
  prepareCopying();
  prepareDialogs();
  prepareLeaving();
  prepareUnsaved();
  prepareTimes();
  prepareEnter();
  prepareForms();
});
