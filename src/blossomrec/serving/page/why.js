// What an explanation says, in lists: events that count most, then layer by layer.
import { byId, element, number, percent, signed } from "./elements.js";

const MOST_RECENT = 8;
const MOST_OF_BLOCK = 3;

export function drawWhy(explanation, named, go) {
  byId("why-heading").textContent = `Why ${named(explanation.item)}`;
  const { score, rest, contributions, events, layers } = explanation;
  const sum = contributions.reduce((total, share) => total + share, 0);
  const count = number(contributions.length);
  byId("reasons").replaceChildren(
    element(
      "p",
      {},
      `Its score is ${score.toFixed(3)}: ${signed(sum)} from ${count} events ` +
        `and ${signed(rest)} from what the model holds for every history.`,
    ),
    element("h3", {}, "Events that count most"),
    shares(events, named, explanation.start, go),
    ...layers.map((layer, index) => drawLayer(layer, index, named)),
  );
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
  const amount = element("span", { class: "amount" }, signed(contribution));
  return element("li", {}, name, bar, amount);
}

function drawLayer({ long, short }, index, named) {
  const share = long.gate / (long.gate + short.gate || 1);
  const [far, near] = [element("span", { class: "long" }), element("span")];
  far.style.flexGrow = share;
  near.style.flexGrow = 1 - share;
  const gates =
    `Gates: long-term ${long.gate.toFixed(2)}, short-term ${short.gate.toFixed(2)}. ` +
    `Over the long-term path ${signed(long.contribution)} passes to the score, ` +
    `over the short-term path ${signed(short.contribution)}, the rest beside both.`;
  return element(
    "div",
    { class: "layer" },
    element("h3", {}, `Layer ${index + 1}`),
    element("div", { class: "gates", "aria-hidden": "true" }, far, near),
    element("p", { class: "note" }, gates),
    folded("Blocks it looks at", long.blocks.map((block) => drawBlock(block, named))),
    folded("Recent events it looks at", recentEvents(short.events, named)),
  );
}

function folded(heading, lines) {
  return element(
    "details",
    {},
    element("summary", {}, `${heading} (${number(lines.length)})`),
    element("p", { class: "note" }, "Share of the path's attention, and what passes to the score:"),
    element("ul", { class: "shares" }, ...lines),
  );
}

function drawBlock({ own, heads, weight, contribution, events }, named) {
  const [first, last] = [events[0].position + 1, events[events.length - 1].position + 1];
  const chosen = own ? "the last event's own" : `selected by ${heads} of its key/value heads`;
  const best = [...events].sort((one, other) => other.weight - one.weight);
  const items = best.slice(0, MOST_OF_BLOCK).map((event) => named(event.item));
  return element(
    "li",
    {},
    element(
      "span",
      {},
      `Events ${number(first)} to ${number(last)}, ${chosen}: most at ${items.join("; ")}`,
    ),
    element("span", { class: "amount" }, percent(weight)),
    element("span", { class: "amount" }, signed(contribution)),
  );
}

function recentEvents(events, named) {
  const best = [...events].sort((one, other) => other.weight - one.weight);
  return best
    .slice(0, MOST_RECENT)
    .map((event) =>
      element(
        "li",
        {},
        element("span", {}, `${named(event.item)} (event ${number(event.position + 1)})`),
        element("span", { class: "amount" }, percent(event.weight)),
        element("span", { class: "amount" }, signed(event.contribution)),
      ),
    );
}
