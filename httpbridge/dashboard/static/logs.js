// The Logs page: the choice of time, and live tail. Entries arrive as the markup that the page's template makes of them,
// escaped there, and are put on top of the list.
"use strict";

const ENTRIES_MAX = 500;

// Presets and times of one's own exclude each other. What is empty, or as it would be anyway, is not in the address.
function prepareTimeChoice() {
  const form = document.getElementById("filter");
  const range = form.elements.range;
  const times = [form.elements.since, form.elements.until];
  form.elements.shown?.remove();
  range.addEventListener("change", () => {
    if (range.value === "custom") {
      form.querySelector("details.more").open = true;  // on narrow screens the times are in it
      form.elements.since.focus();
    } else {
      for (const field of times) field.value = "";
    }
  });
  for (const field of times) {
    field.addEventListener("input", () => {
      range.value = times.some((one) => one.value.trim()) ? "custom" : range.dataset.default;
    });
  }
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (!value) formData.delete(name);
    if (["custom", range.dataset.default].includes(range.value)) formData.delete("range");
  });
}

function prepareLiveTail() {
  const live = document.getElementById("live");
  if (!live || !window.EventSource) return;
  const button = document.getElementById("live-button");
  const state = document.getElementById("live-state");
  const list = document.getElementById("entries");
  const gap = document.getElementById("live-gap");
  const address = new URL(live.dataset.stream, location.href);
  let source = null;
  let isWaiting = false;

  function show(text, label) {
    state.textContent = text;
    button.textContent = label;
    button.setAttribute("aria-pressed", String(source !== null));
  }

  function stop(text, label) {
    source?.close();
    source = null;
    show(text, label);
  }

  function add(event) {
    address.searchParams.set("after", event.lastEventId);  // where to go on after a pause
    const { html, is_gap } = JSON.parse(event.data);
    const arrived = document.createElement("template");
    arrived.innerHTML = html;
    showLocalTimes(arrived.content);
    const fresh = [...arrived.content.children].filter((entry) => !list.querySelector(`[data-id="${entry.dataset.id}"]`));
    if (fresh.length) document.querySelector("main > .empty")?.remove();  // it says that there is nothing
    list.prepend(...fresh);
    while (list.children.length > ENTRIES_MAX) list.lastElementChild.remove();
    if (is_gap) gap.hidden = false;
    show("Live", "Pause");
  }

  function start() {
    source = new EventSource(address);
    show("Connecting", "Pause");
    source.addEventListener("open", () => show("Live", "Pause"));
    source.addEventListener("message", add);
    source.addEventListener("trouble", () => show("The log store is unavailable; trying again", "Pause"));
    source.addEventListener("over", () => stop("Your session is over; reload the page to sign in", "Live tail"));
    source.addEventListener("displaced", () => stop("You have opened many live tails; this one has ended", "Live tail"));
    source.addEventListener("error", () => {
      if (source?.readyState === EventSource.CLOSED) stop("Live tail was refused; try again later", "Live tail");
      else show("Connecting again", "Pause");
    });
  }

  button.addEventListener("click", () => {
    isWaiting = false;
    if (source) stop("Paused", "Resume");
    else start();
  });
  // A browser has few connections to a site, and each tail keeps one: a tab that nobody sees gives its own up meanwhile.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && source) {
      isWaiting = true;
      stop("Paused while out of sight", "Resume");
    } else if (!document.hidden && isWaiting) {
      isWaiting = false;
      start();
    }
  });
  live.hidden = false;
  show("", "Live tail");
}

document.addEventListener("DOMContentLoaded", () => {
  prepareTimeChoice();
  prepareLiveTail();
});
