// The history as blocks of events: coloured by contribution, framed where a layer looks.
import { brief, byId, element, nthLayer, number, signed } from "./elements.js";

// More cells than this would be slow to draw, and too many to look at.
const MAX_SHOWN = 4096;
const MAX_LAST = 6;
// Layers whose names fit under a block.
const MAX_NAMED = 2;
const LEVELS = [0.02, 0.15, 0.4, 0.7];

// What is drawn, in order: {index} of an event, counted from the first one that the model sees, or
// {unknown}, an event that the model does not know; and the cell of each.
let drawn = [];
let cells = [];
let current = 0;
let describe = () => "";

// history: {items, kinds, unknown, start, length, blockSize, contributions or null, layers}, where
// unknown has the events before the first item, and behind each; named: id -> text.
export function drawTimeline(history, named) {
  const { items, blockSize, contributions, unknown } = history;
  const skipped = Math.ceil(Math.max(0, items.length - MAX_SHOWN) / blockSize) * blockSize;
  const { picked, own, recent } = marks(history);
  const largest = Math.max(...(contributions ?? []).map(Math.abs), 1e-9);
  describe = describer(history, picked, recent, named);
  [drawn, cells] = [[], []];
  const blocks = [];
  // Without an event that the model knows, one block has the others.
  for (let first = skipped; first < Math.max(items.length, 1); first += blockSize) {
    const block = first / blockSize;
    const inside = element("div", { class: "cells", role: "presentation" });
    inside.style.setProperty("--across", Math.ceil(Math.sqrt(blockSize)));
    const strangers = (list) =>
      list.forEach((event) => inside.append(cell({ unknown: event }, "cell unknown")));
    if (first === 0) strangers(unknown[0]);
    for (let index = first; index < Math.min(first + blockSize, items.length); index++) {
      const level = contributions === null ? "" : colour(contributions[index] / largest);
      inside.append(cell({ index }, `cell ${level} ${recent.has(index) ? "recent" : ""}`));
      strangers(unknown[index + 1]);
    }
    const by = picked.get(block);
    const kind = `block ${by ? "lit" : ""} ${block === own ? "own" : ""}`;
    const layers = element("span", { class: "layers", "aria-hidden": "true" });
    if (by) layers.textContent = shortly(by);
    blocks.push(element("div", { class: kind, role: "presentation" }, inside, layers));
  }
  const timeline = byId("timeline");
  timeline.replaceChildren(...blocks);
  timeline.dataset.block = blockSize;
  timeline.scrollTop = timeline.scrollHeight;
  select(cells.length - 1, false);
  byId("timeline-note").textContent = note(history, skipped);
  byId("unknown-key").hidden = !drawn.some((one) => one.unknown);
  drawLast(history, named);
}

// Go to an event; its index counts from the first one that the model sees.
export function showEvent(index) {
  select(drawn.findIndex((one) => one.index === index), true);
}

export function clearTimeline(words) {
  for (const id of ["timeline", "last"]) byId(id).replaceChildren();
  byId("detail").textContent = "";
  byId("timeline-note").textContent = words;
  byId("unknown-key").hidden = true;
}

function drawLast({ items, kinds }, named) {
  const lines = drawn.slice(-MAX_LAST).map(({ index, unknown }) => {
    const line = element("li", {}, named(unknown?.item ?? items[index]));
    const kind = unknown ? unknown.kind : kinds[index];
    if (kind !== null) line.append(element("span", { class: "id" }, ` ${kind}`));
    if (unknown) line.append(element("span", { class: "id" }, " (not known to the model yet)"));
    return line;
  });
  byId("last").replaceChildren(...lines.reverse());
}

function describer({ items, kinds, start, blockSize, contributions }, picked, recent, named) {
  return ({ index, unknown }) => {
    if (unknown) {
      const kind = unknown.kind === null ? "" : ` (${unknown.kind})`;
      return `${named(unknown.item)}${kind}: not known to the model yet, does not count`;
    }
    const share = contributions === null ? "" : `: ${signed(contributions[index])}`;
    const by = (picked.get(Math.floor(index / blockSize)) ?? []).map(nthLayer);
    const long = by.length ? `, long-term interest of the ${by.join(" and the ")}` : "";
    const short = recent.has(index) ? ", short-term interest" : "";
    const kind = kinds[index] === null ? "" : ` (${kinds[index]})`;
    const event = `Event ${number(start + index + 1)}, ${named(items[index])}${kind}`;
    return `${event}${share}${long}${short}`;
  };
}

// Blocks with the layers that pick them, the block of the last event, and recent events. What has
// no weight in a layer is not looked at.
function marks({ layers, items, start, blockSize }) {
  const picked = new Map();
  const recent = new Set();
  layers.forEach(({ long, short }, layer) => {
    for (const block of long.gate > 0 ? long.blocks.filter((one) => !one.own) : []) {
      const index = Math.floor((block.events[0].position - start) / blockSize);
      picked.set(index, [...(picked.get(index) ?? []), layer]);
    }
    for (const event of short.gate > 0 ? short.events : []) recent.add(event.position - start);
  });
  const looks = layers.some(({ long }) => long.gate > 0);
  return { picked, own: looks ? Math.floor((items.length - 1) / blockSize) : -1, recent };
}

function shortly(layers) {
  return layers.length > MAX_NAMED ? `${layers.length} layers` : layers.map(brief).join(" ");
}

function colour(share) {
  const level = LEVELS.filter((one) => Math.abs(share) >= one).length;
  return level ? `${share > 0 ? "up" : "down"}-${level}` : "";
}

function cell(entry, kind) {
  const made = element("span", {
    class: kind,
    role: "option",
    tabindex: "-1",
    "aria-selected": "false",
    "data-index": cells.length,
  });
  drawn.push(entry);
  cells.push(made);
  return made;
}

// place: in what is drawn.
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
  chosen.setAttribute("aria-label", describe(drawn[place]));
  byId("detail").textContent = describe(drawn[place]);
  if (focus) chosen.focus();
}

function note({ items, start, length, layers }, skipped) {
  const parts = [`${number(length)} ${length === 1 ? "event" : "events"}, oldest first.`];
  const others = drawn.filter((one) => one.unknown).length;
  if (others > 0) parts.push(`${number(others)} more the model does not know yet.`);
  if (start > 0) parts.push(`The model sees the last ${number(items.length)}.`);
  if (skipped > 0) parts.push(`The last ${number(items.length - skipped)} are drawn.`);
  if (layers.length > 1) parts.push("Under a block: the layers that pick it, 1st, 2nd and so on.");
  return parts.join(" ");
}

export function listenToTimeline() {
  const timeline = byId("timeline");
  timeline.addEventListener("click", (event) => {
    const chosen = event.target.closest("[data-index]");
    if (chosen !== null) select(Number(chosen.dataset.index), true);
  });
  timeline.addEventListener("mouseover", (event) => {
    const over = event.target.closest("[data-index]");
    if (over !== null) byId("detail").textContent = describe(drawn[Number(over.dataset.index)]);
  });
  timeline.addEventListener("mouseleave", () => {
    if (cells[current] !== undefined) byId("detail").textContent = describe(drawn[current]);
  });
  timeline.addEventListener("keydown", (event) => {
    const block = Number(timeline.dataset.block);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -block, ArrowDown: block };
    const ends = { Home: 0, End: cells.length - 1 };
    if (!(event.key in steps) && !(event.key in ends)) return;
    event.preventDefault();
    const wanted = ends[event.key] ?? current + steps[event.key];
    select(Math.min(Math.max(wanted, 0), cells.length - 1), true);
  });
}
