// The Logs page: the choice of time, and live tail. Entries that arrive are put on top of the list, looking as the server's
// template makes them. Their texts only ever become text. What the server sends is harmless but for markup; see
// log_entries.py.
"use strict";

const ENTRIES_MAX = 500;

function element(name, properties, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function timeOf(instant, form = "full") {
  const made = element("time", { dateTime: instant, title: instant }, instant);
  made.dataset.form = form;
  return made;
}

function fieldOf(name, ...content) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, ...content));
}

function partOf(part, entry) {
  const label = `${part.name} of entry ${entry.id}`;
  const text = part.is_block
    ? element("pre", { tabIndex: 0, role: "region", "aria-label": label, dir: "auto" }, part.text)
    : element("bdi", {}, part.text);
  if (!part.missing) return fieldOf(part.name, text);
  const more = `${part.missing.toLocaleString("en")} more characters are not shown here.`;
  return fieldOf(part.name, text, element("p", { className: "hint" }, more));
}

function entryOf(entry, base) {
  const made = element(
    "details",
    { className: `entry level-${entry.level}` },
    element(
      "summary", {}, timeOf(entry.timestamp, "precise"), " ",
      element("span", { className: `level level-${entry.level}` }, entry.level), " ",
      element("bdi", { className: "service" }, entry.service), " ",
      element("bdi", { className: "headline" }, entry.headline),
    ),
    element(
      "dl", { className: "fields" },
      fieldOf("time", timeOf(entry.timestamp), " ", element("span", { className: "muted" }, entry.timestamp)),
      ...entry.parts.map((part) => partOf(part, entry)),
      fieldOf("received", timeOf(entry.received_at)),
    ),
    element(
      "p", { className: "by-itself" },
      element("a", { href: `${base}/${entry.id}` }, entry.is_short ? "See more of this entry" : "This entry by itself"),
    ),
  );
  made.dataset.id = entry.id;
  showLocalTimes(made);
  return made;
}

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
  const base = address.pathname.replace(/\/stream$/, "");
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
    const { entries, is_gap } = JSON.parse(event.data);
    const fresh = entries.filter((entry) => !list.querySelector(`[data-id="${entry.id}"]`));
    if (fresh.length) document.querySelector("main > .empty")?.remove();  // it says that there is nothing
    list.prepend(...fresh.reverse().map((entry) => entryOf(entry, base)));
    while (list.children.length > ENTRIES_MAX) list.lastElementChild.remove();
    if (is_gap) gap.hidden = false;
    show("Live", "Pause");
  }

  function start() {
    source = new EventSource(address);
    show("Connecting", "Pause");
    source.addEventListener("open", () => show("Live", "Pause"));
    source.addEventListener("message", add);
    source.addEventListener("trouble", () => show("The log store is out of reach; trying again", "Pause"));
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
