// The history as blocks of events: coloured by contribution, lit where a layer selects.
import { byId, element, number, signed } from "./elements.js";

// More cells than this would be slow to draw, and too many to look at.
const MOST_SHOWN = 4096;
const LEVELS = [0.02, 0.15, 0.4, 0.7];

let cells = [];
let current = 0;
let describe = () => "";

// history: {items, start, length, blockSize, contributions or null, layers}; named: id -> text.
export function drawTimeline(history, named) {
  const { items, start, blockSize, contributions } = history;
  const skipped = Math.ceil(Math.max(0, items.length - MOST_SHOWN) / blockSize) * blockSize;
  const { selected, own, recent } = marks(history);
  const largest = Math.max(...(contributions ?? []).map(Math.abs), 1e-9);
  describe = (place) => {
    const share = contributions === null ? "" : `: ${signed(contributions[place])}`;
    const by = (selected.get(Math.floor(place / blockSize)) ?? []).map((one) => `layer ${one}`);
    const lit = by.length ? `, in a block selected by ${by.join(" and ")}` : "";
    const near = recent.has(place) ? ", a recent event" : "";
    return `Event ${number(start + place + 1)}, ${named(items[place])}${share}${lit}${near}`;
  };
  cells = [];
  const blocks = [];
  for (let first = skipped; first < items.length; first += blockSize) {
    const block = first / blockSize;
    const inside = element("div", { class: "cells", role: "presentation" });
    inside.style.setProperty("--across", Math.ceil(Math.sqrt(blockSize)));
    for (let place = first; place < Math.min(first + blockSize, items.length); place++) {
      const level = contributions === null ? "" : colour(contributions[place] / largest);
      inside.append(cell(place, `cell ${level} ${recent.has(place) ? "recent" : ""}`));
    }
    const by = selected.get(block);
    const kind = `block ${by ? "lit" : ""} ${block === own ? "own" : ""}`;
    const layers = element("span", { class: "layers", "aria-hidden": "true" });
    if (by) layers.textContent = `L${by.join(" L")}`;
    blocks.push(element("div", { class: kind, role: "presentation" }, inside, layers));
  }
  const timeline = byId("timeline");
  timeline.replaceChildren(...blocks);
  timeline.dataset.block = blockSize;
  timeline.dataset.first = skipped;
  timeline.scrollTop = timeline.scrollHeight;
  select(items.length - 1, false);
  byId("timeline-note").textContent = note(history, skipped);
}

// Go to an event; positions are counted from the start of the history.
export function showEvent(place) {
  select(place, true);
}

function marks({ layers, items, start, blockSize }) {
  const selected = new Map();
  const recent = new Set();
  layers.forEach((layer, index) => {
    for (const block of layer.long.blocks.filter((one) => !one.own)) {
      const place = Math.floor((block.events[0].position - start) / blockSize);
      selected.set(place, [...(selected.get(place) ?? []), index + 1]);
    }
    for (const event of layer.short.events) recent.add(event.position - start);
  });
  const own = layers.length ? Math.floor((items.length - 1) / blockSize) : -1;
  return { selected, own, recent };
}

function colour(share) {
  const level = LEVELS.filter((one) => Math.abs(share) >= one).length;
  return level ? `${share > 0 ? "up" : "down"}-${level}` : "";
}

function cell(place, kind) {
  const made = element("span", {
    class: kind,
    role: "option",
    tabindex: "-1",
    "aria-selected": "false",
    "data-place": place,
  });
  cells[place] = made;
  return made;
}

function select(place, focus) {
  if (cells[place] === undefined) return;
  const before = cells[current];
  if (before !== undefined) {
    before.tabIndex = -1;
    before.setAttribute("aria-selected", "false");
  }
  current = place;
  const chosen = cells[place];
  chosen.tabIndex = 0;
  chosen.setAttribute("aria-selected", "true");
  // Only the one that is read out needs its text.
  chosen.setAttribute("aria-label", describe(place));
  byId("detail").textContent = describe(place);
  if (focus) chosen.focus();
}

function note({ items, start, length, layers, contributions }, skipped) {
  const parts = [`${number(length)} ${length === 1 ? "event" : "events"}, oldest first.`];
  if (start > 0) parts.push(`The model sees the last ${number(items.length)}.`);
  if (skipped > 0) parts.push(`The last ${number(items.length - skipped)} are drawn.`);
  if (contributions !== null) {
    const names = layers.map((_, index) => `L${index + 1}`).join(", ");
    parts.push(`${names}: layers that select a block for the last event.`);
  }
  return parts.join(" ");
}

export function listenToTimeline() {
  const timeline = byId("timeline");
  timeline.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-place]");
    if (chosen !== null) select(Number(chosen.dataset.place), true);
  });
  timeline.addEventListener("mouseover", (event) => {
    const over = event.target.closest("[data-place]");
    if (over !== null) byId("detail").textContent = describe(Number(over.dataset.place));
  });
  timeline.addEventListener("mouseleave", () => {
    if (cells[current] !== undefined) byId("detail").textContent = describe(current);
  });
  timeline.addEventListener("keydown", (event) => {
    const block = Number(timeline.dataset.block);
    const first = Number(timeline.dataset.first);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -block, ArrowDown: block };
    const ends = { Home: first, End: cells.length - 1 };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    const wanted = ends[event.key] ?? current + steps[event.key];
    select(Math.min(Math.max(wanted, first), cells.length - 1), true);
  });
}
