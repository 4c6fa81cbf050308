// What an explanation says, in lists: events that count most, then layer by layer.
import { byId, element, nthLayer, number, percent, signed } from "./elements.js";

const MAX_RECENT = 8;
const MAX_OF_BLOCK = 3;
const LOOKS =
  "From the last event each layer looks back in two ways: at blocks that it picks from the whole " +
  "history (long-term interest) and at recent events (short-term interest). Shown are the share " +
  "that each of the two has, and what reaches the score through it. Layers build on each other: " +
  "their numbers do not add up.";

export function drawWhy(explanation, named, go) {
  byId("why-heading").textContent = `Why ${named(explanation.item)}`;
  const { score, rest, own, contributions, events, layers } = explanation;
  const sum = contributions.reduce((total, share) => total + share, 0);
  const count = number(contributions.length);
  const from = contributions.length === 1 ? "the one event" : `${count} events`;
  byId("reasons").replaceChildren(
    element(
      "p",
      {},
      `Its score is ${score.toFixed(3)}: ${signed(sum)} from ${from} ` +
        `and ${signed(rest)} that it gets after every history` +
        (own ? `, and ${signed(own.contribution)} because it is ${own.words}.` : "."),
    ),
    ...(own ? [ownShare(own)] : []),
    element("h3", {}, "Events that count most"),
    shares(events, named, explanation.start, go),
    element("h3", {}, "Where the model looks"),
    element("p", { class: "note" }, LOOKS),
    ...layers.map((layer, index) => drawLayer(layer, index, named)),
  );
}

function ownShare(own) {
  const words = `${percent(own.share)} of its probability comes from the history alone.`;
  return element("p", { class: "note" }, words);
}

export function drawNoWhy(words) {
  byId("why-heading").textContent = "Why";
  byId("reasons").replaceChildren(element("p", { class: "note" }, words));
}

function shares(events, named, start, go) {
  const largest = Math.max(...events.map((event) => Math.abs(event.contribution)), 1e-9);
  const lines = events.map((event) => {
    const to = element("a", { href: "#timeline" }, `event ${number(event.position + 1)}`);
    to.addEventListener("click", (click) => {
      click.preventDefault();
      go(event.position - start);
    });
    const name = element("span", {}, `${named(event.item)} `, to);
    return line(name, event.contribution, largest);
  });
  return element("ol", { class: "shares" }, ...lines);
}

function line(name, contribution, largest) {
  const filled = element("span", { class: contribution < 0 ? "minus" : "plus" });
  filled.style.width = `${(100 * Math.abs(contribution)) / largest}%`;
  const bar = element("span", { class: "bar", "aria-hidden": "true" }, filled);
  return element("li", {}, name, bar, amount(signed(contribution)));
}

function amount(text) {
  return element("span", { class: "amount" }, text);
}

// A model may look in one of the two ways only: the other one has no weight.
function drawLayer({ long, short }, index, named) {
  const total = long.gate + short.gate || 1;
  const [far, near] = [long.gate / total, short.gate / total];
  const bar = element("div", { class: "interests", "aria-hidden": "true" });
  const lines = [];
  const lists = [];
  if (far > 0) {
    bar.append(part("long", far));
    lines.push(interest("Long-term interest", "long", far, long.contribution));
    const blocks = long.blocks.map((block) => drawBlock(block, long.blocks, named));
    lists.push(folded("Blocks of long-term interest", blocks));
  }
  if (near > 0) {
    bar.append(part("short", near));
    lines.push(interest("Short-term interest", "short", near, short.contribution));
    const recent = recentEvents(short.events, named);
    lists.push(folded("Events of short-term interest", recent));
  }
  const name = nthLayer(index);
  return element(
    "div",
    { class: "layer" },
    element("h4", {}, `${name.charAt(0).toUpperCase()}${name.slice(1)}`),
    bar,
    element("ul", { class: "shares" }, ...lines),
    ...lists,
  );
}

function part(kind, share) {
  const made = element("span", { class: kind });
  made.style.flexGrow = share;
  return made;
}

function interest(name, kind, share, contribution) {
  const mark = element("span", { class: `dot ${kind}`, "aria-hidden": "true" });
  const words = element("span", {}, mark, name);
  return element("li", {}, words, amount(percent(share)), amount(signed(contribution)));
}

function folded(heading, lines) {
  return element(
    "details",
    {},
    element("summary", {}, `${heading} (${number(lines.length)})`),
    element("p", { class: "note" }, "Share of the attention, and what reaches the score:"),
    element("ul", { class: "shares" }, ...lines),
  );
}

function drawBlock({ own, heads, weight, contribution, events }, blocks, named) {
  const [first, last] = [events[0].position + 1, events[events.length - 1].position + 1];
  // The block of the last event is seen by all heads.
  const all = blocks.find((block) => block.own).heads;
  const by = own ? "with the last event" : `picked by ${heads} of ${all} heads`;
  const best = [...events].sort((one, other) => other.weight - one.weight);
  const items = best.slice(0, MAX_OF_BLOCK).map((event) => named(event.item));
  const [from, to] = [number(first), number(last)];
  const span = first === last ? `Event ${from}` : `Events ${from} to ${to}`;
  return element(
    "li",
    {},
    element("span", {}, `${span}, ${by}: above all ${items.join("; ")}`),
    amount(percent(weight)),
    amount(signed(contribution)),
  );
}

function recentEvents(events, named) {
  const best = [...events].sort((one, other) => other.weight - one.weight);
  return best
    .slice(0, MAX_RECENT)
    .map((event) =>
      element(
        "li",
        {},
        element("span", {}, `${named(event.item)} (event ${number(event.position + 1)})`),
        amount(percent(event.weight)),
        amount(signed(event.contribution)),
      ),
    );
}
