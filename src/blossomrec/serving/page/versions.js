// Versions of the model: the one in use, those before it, what came of their lists, what was refused.
import { byId, element, moment, number, percent } from "./elements.js";
import { ask } from "./server.js";

// Ranks beyond this are for programs.
const MOST_WITHIN = 20;

// Only the last answer that was asked for is drawn.
let turn = 0;

export function listenToVersions(fail) {
  const versions = byId("versions");
  const toggled = () => versions.open && show().catch(fail);
  versions.addEventListener("toggle", toggled);
  // It may have been opened before.
  toggled();
}

async function show() {
  const mine = ++turn;
  const { versions, refused } = await ask("v1/versions");
  if (mine !== turn) return;
  byId("versions-list").replaceChildren(...versions.map(version));
  const lines = refused.map(({ at, why }) =>
    element("li", {}, element("span", { class: "id" }, `${moment(at)} `), why),
  );
  byId("refused").replaceChildren(...lines);
  byId("refused-part").hidden = lines.length === 0;
}

function version(told) {
  const used = told.until === null ? "in use" : `until ${moment(told.until)}`;
  const head = element(
    "h3",
    {},
    `${told.model} `,
    element("span", { class: "id" }, `${told.run}, since ${moment(told.since)}, ${used}`),
  );
  const hits = told.hits.filter(({ within }) => within <= MOST_WITHIN);
  const facts = [
    ["Weights written", moment(told.written)],
    ["Lists", number(told.lists)],
    ["By the fallback", number(told.fallbacks)],
    ["Events that followed", number(told.followed)],
    ...hits.map(({ within, rate }) => [`Hit rate, first ${within}`, share(rate)]),
    ["Mean of 1 / rank", told.mrr === null ? "\u2013" : told.mrr.toFixed(3)],
  ];
  return element("li", {}, head, element("dl", { class: "facts" }, ...facts.map(fact)));
}

function share(rate) {
  return rate === null ? "\u2013" : percent(rate);
}

function fact([name, value]) {
  return element("div", {}, element("dt", {}, name), element("dd", {}, value));
}
