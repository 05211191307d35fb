// What the pages do beside showing: forms that post JSON, dialogs, keys, live refresh. No eval, no inline code.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  let toast = 0;

  function say(text) {
    const box = $("#said");
    if (!box) return;
    box.textContent = text;
    clearTimeout(toast);
    toast = setTimeout(() => { box.textContent = ""; }, 6000);
  }

  // ---------------------------------------------------------------- forms

  function body(form) {
    const sent = {};
    const data = new FormData(form);
    const days = data.getAll("recurrence.days");
    if (days.length) {
      const [start, time_zone] = [data.get("recurrence.start"), data.get("recurrence.time_zone")];
      sent.recurrence = { days, start, time_zone, duration: data.get("for") };
      data.delete("for"); // it is how long each of its windows lasts
    }
    for (const [name, value] of data) {
      if (name === "matcher") {
        const { field, value: wanted } = JSON.parse(value);
        sent.matchers = { [field]: wanted };
      } else if (name === "matcher.field") {
        sent.matchers = { [value]: data.get("matcher.value") };
      } else if (name !== "matcher.value" && !name.startsWith("recurrence.") && value !== "") {
        sent[name] = value;
      }
    }
    return sent;
  }

  async function post(form) {
    const problem = $(".problem", form);
    const button = $("button:not([type=button])", form);
    if (problem) problem.textContent = "";
    if (button) button.disabled = true;
    const method = form.dataset.method || "POST";
    try {
      const answer = await fetch(form.dataset.post, {
        method,
        headers: { "content-type": "application/json", "X-Inferwatch": "1" },
        body: method === "DELETE" ? undefined : JSON.stringify(body(form)),
        credentials: "same-origin",
      });
      if (!answer.ok) throw new Error(await reason(answer));
      if (form.dataset.then) { location.assign(form.dataset.then); return; }
      const dialog = form.closest("dialog");
      if (dialog) dialog.close();
      form.reset();
      say(form.dataset.said || "Done.");
      changed();
    } catch (error) {
      const text = error instanceof TypeError ? "Inferwatch does not answer." : error.message;
      if (problem) problem.textContent = text; else say(text);
    } finally {
      if (button) button.disabled = false;
    }
  }

  async function reason(answer) {
    try {
      const problem = await answer.json();
      return problem.detail || problem.title;
    } catch {
      return `It was refused (${answer.status}).`;
    }
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.post) {
      event.preventDefault();
      post(form);
    }
  });

  // -------------------------------------------------------------- dialogs

  function open(id) {
    const dialog = document.getElementById(id);
    if (!dialog || dialog.open) return;
    const problem = $(".problem", dialog);
    if (problem) problem.textContent = "";
    dialog.showModal();
  }

  document.addEventListener("click", (event) => {
    const target = event.target.closest("[data-open], [data-close], [data-copy]");
    if (!target) {
      if (event.target.matches("dialog")) event.target.close(); // the backdrop
      return;
    }
    if (target.dataset.open) open(target.dataset.open);
    if ("close" in target.dataset) target.closest("dialog").close();
    if (target.dataset.copy && navigator.clipboard) {
      navigator.clipboard.writeText(target.dataset.copy)
        .then(() => say(`Copied ${target.dataset.copy}`), () => say("The browser did not let it be copied."));
    }
  });

  // ----------------------------------------------------------------- keys

  const places = { i: "/", s: "/series", m: "/models", o: "/sources", d: "/deliveries" };
  let went = 0;

  function move(step) {
    const rows = $$("[data-row]");
    if (!rows.length) return;
    const at = rows.indexOf(document.activeElement);
    const next = at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + step, 0), rows.length - 1);
    rows[next].focus();
    rows[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
    if (event.target.closest("input, textarea, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const waiting = Date.now() - went < 1500;
    went = 0;
    if (waiting && places[event.key]) { location.assign(places[event.key]); return; }
    const button = $(`[data-key="${CSS.escape(event.key)}"]`);
    if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
    else if (event.key === "/" && $("#q")) $("#q").focus();
    else if (event.key === "?") open("help");
    else if (event.key === "g") went = Date.now();
    else if (event.key === "u" && $("[data-up]")) $("[data-up]").click();
    else if (button) button.click();
    else return;
    event.preventDefault();
  });

  const here = $(".top nav [aria-current]"); // on a phone the row of pages is longer than the screen
  if (here) here.scrollIntoView({ block: "nearest", inline: "nearest" });

  // ----------------------------------------------------------------- live

  let pending = 0;
  function changed() {
    clearTimeout(pending);
    pending = setTimeout(() => { if (window.htmx) htmx.trigger(document.body, "changed"); }, 150);
  }

  const path = document.body.dataset.events;
  let events = null;
  function listen() { // only while somebody looks: a browser has few connections to one server
    if (!path || !window.EventSource || events || document.hidden) return;
    events = new EventSource(path);
    for (const name of ["incident", "delivery"]) events.addEventListener(name, changed);
  }
  function deaf() {
    if (events) events.close();
    events = null;
  }
  listen();
  addEventListener("pagehide", deaf);

  const lost = (is) => { const box = $("#offline"); if (box) box.hidden = !is; };
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && event.detail.elt.matches("#live, #refresh")) event.preventDefault();
  });
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) { deaf(); return; }
    listen();
    changed();
  });
  document.addEventListener("htmx:sendError", () => lost(true));
  document.addEventListener("htmx:timeout", () => lost(true));
  document.addEventListener("htmx:responseError", (event) => {
    if (event.detail.xhr.status === 401) location.reload(); // the session has ended
    else lost(true);
  });
  document.addEventListener("htmx:afterOnLoad", () => lost(false));
})();
