// The page: whose history, what is recommended after it, why, and what comes of one more event.
import { byId, element, milliseconds, number } from "./elements.js";
import { filtered, offerFilter } from "./filter.js";
import { addedKind, eventsOf, listenToKinds, offerKinds, placed, wanted } from "./kinds.js";
import { Refused, ask, useToken } from "./server.js";
import { clearTimeline, drawTimeline, listenToTimeline, showEvent } from "./timeline.js";
import { hasTitle, idOf, learnTitles, named, typed } from "./titles.js";
import { listUsers, listenToUsers, markUser } from "./users.js";
import { listenToVersions } from "./versions.js";
import { drawNoWhy, drawWhy } from "./why.js";

const K = 10;
const MAX_SUGGESTED = 100;

// Whose history: {user_id}, or {history} with its kinds if any are known; its events, and of a pasted one those unknown to the model; what was recommended, and which item is explained.
let subject = null;
let known = null;
let unknown = [];
let items = [];
let chosen = null;
// Answers to requests before the last one are not shown.
let turn = 0;

async function show(next, { added = null } = {}) {
  const mine = ++turn;
  const before = subject !== null && added !== null ? items : [];
  let strange = false;
  say("Asking ...");
  try {
    const start = performance.now();
    if (added !== null && next.user_id !== undefined) {
      const path = `v1/users/${encodeURIComponent(next.user_id)}/events`;
      const kind = addedKind();
      const event = kind === null ? { item: added } : { item: added, kind };
      strange = (await ask(path, { events: [event] })).unknown_items.length > 0;
    }
    const answer = await ask("v1/recommend", { ...next, ...wanted(), ...filtered(), k: K });
    const took = performance.now() - start;
    const shown = answer.items.map((one) => one.item);
    const titled = await learnTitles(added === null ? shown : [...shown, added]);
    if (mine !== turn) return;
    byId("titles-hint").hidden = titled;
    [subject, items, known, unknown] = [next, answer.items, null, answer.unknown_items ?? []];
    strange ||= unknown.some((item) => String(item) === String(added));
    markUser(next.user_id ?? null);
    chosen = items.some((one) => one.item === chosen) ? chosen : (items[0]?.item ?? null);
    drawItems(before);
    byId("results").hidden = false;
    const still = strange ? ", which the model does not know yet" : "";
    const did = added === null ? "" : `${named(added)} was added${still}. `;
    say(`${did}${items.length} recommendations in ${milliseconds(took)}.`);
    if (added !== null && next.user_id !== undefined) await listUsers();
    await why(mine);
  } catch (error) {
    if (mine === turn) fail(error, next);
  }
}

// The explanation of the chosen item, and with it the history.
async function why(mine) {
  if (chosen === null) {
    await withoutWhy("Nothing is left to recommend.", mine);
    return;
  }
  try {
    const asked = { ...subject, ...wanted(), item_id: chosen, k: K };
    const [explanation, told] = await Promise.all([
      ask("v1/explain", asked),
      known ?? eventsOf(subject, unknown),
    ]);
    const strange = told.events.filter((event) => event.known === false);
    await learnTitles([...explanation.items, ...strange.map((event) => event.item)]);
    if (mine !== turn) return;
    known = told;
    const { start, length, contributions, layers } = explanation;
    const beside = placed(explanation.items, known.events);
    const blockSize = explanation.block_size;
    const seen = { items: explanation.items, ...beside, start, length, blockSize };
    drawTimeline({ ...seen, contributions, layers }, named);
    suggest(explanation.items);
    drawWhy(explanation, named, showEvent);
  } catch (error) {
    if (mine !== turn) return;
    if (!(error instanceof Refused) || error.code !== "not_explainable") throw error;
    await withoutWhy(error.message, mine);
  }
}

// For a model that cannot be explained, or where nothing is left: the history alone.
async function withoutWhy(words, mine) {
  const { events, length } = await eventsOf(subject, unknown);
  const items = events.filter((event) => event.known !== false).map((event) => event.item);
  await learnTitles(events.map((event) => event.item));
  if (mine !== turn) return;
  const start = length - events.length;
  const seen = { items, ...placed(items, events), start, length: start + items.length };
  drawTimeline({ ...seen, blockSize: 16, contributions: null, layers: [] }, named);
  suggest(items);
  if (words) drawNoWhy(words);
}

function drawItems(before) {
  const ranks = new Map(before.map((one) => [one.item, one.rank]));
  const lines = items.map(({ item, score, rank }) => {
    const moved = before.length ? movement(ranks.get(item), rank) : "";
    const name = element("span", {}, named(item));
    if (hasTitle(item)) name.append(element("span", { class: "id" }, ` ${item}`));
    if (moved) name.append(element("span", { class: "moved" }, ` ${moved}`));
    const choose = element(
      "button",
      { class: "choose", type: "button", "aria-pressed": String(item === chosen) },
      element("span", { class: "rank" }, String(rank)),
      name,
      element("span", { class: "score" }, score.toFixed(2)),
    );
    choose.addEventListener("click", () => explain(item));
    const more = element(
      "button",
      { class: "more", type: "button", "aria-label": `Add ${named(item)} to the history` },
      "+",
    );
    more.addEventListener("click", () => add(item));
    return element("li", { class: moved ? "fresh" : "" }, choose, more);
  });
  byId("items").replaceChildren(...lines);
}

// For the field of the next event: what is recommended, then what the history ends with.
function suggest(history) {
  const seen = history.slice(-MAX_SUGGESTED).reverse();
  const suggested = new Set([...items.map(({ item }) => item), ...seen]);
  const options = [...suggested].map((item) =>
    element("option", { value: typed(item) }, hasTitle(item) ? String(item) : ""),
  );
  byId("known").replaceChildren(...options);
}

function movement(before, rank) {
  if (before === undefined) return "new";
  if (before === rank) return "";
  return before > rank ? `up ${before - rank}` : `down ${rank - before}`;
}

async function explain(item) {
  const mine = ++turn;
  chosen = item;
  const pressed = items.findIndex((one) => one.item === item);
  [...document.querySelectorAll(".choose")].forEach((button, index) =>
    button.setAttribute("aria-pressed", String(index === pressed)),
  );
  const start = performance.now();
  try {
    await why(mine);
    if (mine === turn) say(`${named(item)} explained in ${milliseconds(performance.now() - start)}.`);
  } catch (error) {
    if (mine === turn) fail(error, subject);
  }
}

function add(item) {
  const { history } = subject;
  if (!history) return show(subject, { added: item });
  const kind = addedKind();
  const next = { history: [...history, item] };
  if (kind !== null || subject.kinds) {
    next.kinds = [...(subject.kinds ?? history.map(() => null)), kind];
  }
  return show(next, { added: item });
}

function say(text) {
  byId("error").hidden = true;
  byId("status").textContent = text;
}

function fail(error, next) {
  byId("status").textContent = "";
  const words = error instanceof Refused ? error.message : `Something went wrong: ${error.message}`;
  const box = byId("error");
  box.textContent = words;
  box.hidden = false;
  if (error.status === 401) {
    byId("access").hidden = false;
    byId("token").focus();
  }
  const nobody = error.code === "unknown_user";
  if (nobody || error.code === "no_known_item") {
    // Someone new can begin here: with the first event, or the first that the model knows.
    [subject, items, chosen, unknown] = [next, [], null, next.history ?? []];
    markUser(next.user_id ?? null);
    byId("items").replaceChildren();
    if (nobody) clearTimeline("No events yet: add the first one.");
    else withoutWhy("", turn).catch((other) => fail(other, null));
    drawNoWhy("There is nothing to explain yet.");
    byId("results").hidden = false;
  }
}

function pasted(text) {
  const separator = /[,;\n]/.test(text) ? /[,;\n]+/ : /\s+/;
  return text.split(separator).map((one) => one.trim()).filter((one) => one !== "");
}

function listen() {
  const on = (id, act) =>
    byId(id).addEventListener("submit", (event) => {
      event.preventDefault();
      act();
    });
  on("by-user", () => showUser(byId("user").value.trim()));
  on("by-history", () => show({ history: pasted(byId("history").value) }));
  on("by-filter", () => subject !== null && show(subject));
  on("add", async () => {
    const item = idOf(byId("event").value.trim());
    byId("event").value = "";
    await add(item);
  });
  on("access", () => {
    useToken(byId("token").value);
    say("The token is used from now on.");
    begin(byId("user").value.trim());
  });
  listenToKinds(() => subject !== null && show(subject));
  listenToTimeline();
  listenToUsers(showUser, (error) => fail(error, null));
  listenToVersions((error) => fail(error, null));
}

function showUser(id) {
  byId("user").value = id;
  return show({ user_id: id });
}

// The users, and the history of the one who was asked for, "" for the first of them.
async function begin(user) {
  const before = turn;
  try {
    const users = await listUsers();
    // Meanwhile somebody else may have been asked for.
    if (turn !== before) return;
    const first = user || users[0]?.user_id;
    if (first !== undefined) await showUser(first);
  } catch (error) {
    fail(error, null);
  }
}

async function greet() {
  const user = new URLSearchParams(location.search).get("user") ?? "";
  if (user) byId("user").value = user;
  try {
    const { model, items: count, max_len: longest, ...answer } = await ask("readyz");
    offerKinds(answer.kinds, answer.asks_kind);
    offerFilter(answer.columns);
    byId("model").textContent =
      `blossomrec, model ${model}: ${number(count)} items, ` +
      `sees the last ${number(longest)} events of a history`;
    await begin(user.trim());
  } catch (error) {
    byId("latest").removeAttribute("aria-busy");
    fail(error, null);
  }
}

listen();
greet();
