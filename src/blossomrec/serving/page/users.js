// The users to choose from: those whose histories changed last come first, more of them on demand.
import { byId, element, moment, number } from "./elements.js";
import { ask } from "./server.js";

const LISTED = 12;

// Where the list goes on; null at its end. Only the last list that was asked for is drawn.
let next = null;
let turn = 0;
let current = null;
let chosen = () => {};
// Time of a user's last event, with the length of the history that ends with it.
const last = new Map();

// choose: what is done with the id of a user.
export function listenToUsers(choose, fail) {
  chosen = choose;
  byId("more-users").addEventListener("click", () => more().catch(fail));
}

// Gives the users that are listed now; when they had their last events is shown as it arrives.
export async function listUsers() {
  const mine = ++turn;
  byId("latest").setAttribute("aria-busy", "true");
  try {
    const answer = await ask(`v1/users?most=${LISTED}`);
    if (mine === turn) draw(answer);
    showTimes(answer.users, mine);
    return answer.users;
  } catch (error) {
    if (mine === turn) byId("latest").removeAttribute("aria-busy");
    throw error;
  }
}

function draw(answer) {
  byId("users").replaceChildren(...answer.users.map(line));
  const words = answer.users.length
    ? "Or one whose history changed last:"
    : "No user has events yet. Type an id and add a first event, paste a history, or load " +
      "histories with blossomrec import-events.";
  byId("users-note").textContent = words;
  goOn(answer.next);
}

async function showTimes(users, mine) {
  await Promise.allSettled(users.map(showTime));
  if (mine === turn) byId("latest").removeAttribute("aria-busy");
}

async function showTime({ user_id: id, length }) {
  if (last.get(id)?.length !== length) {
    const { events } = await ask(`v1/users/${encodeURIComponent(id)}?last=1`);
    last.set(id, { length, timestamp: events[0].timestamp });
  }
  const drawn = [...byId("users").querySelectorAll("button")];
  const button = drawn.find((one) => one.dataset.user === id);
  const words = `, ${moment(last.get(id).timestamp)}`;
  if (button !== undefined) button.querySelector(".when").textContent = words;
}

// Say whose history is shown; null for nobody's.
export function markUser(id) {
  current = id;
  for (const button of byId("users").querySelectorAll("button")) mark(button);
}

async function more() {
  const mine = ++turn;
  byId("latest").removeAttribute("aria-busy");
  const answer = await ask(`v1/users?most=${LISTED}&before=${next}`);
  if (mine !== turn) return;
  const lines = answer.users.map(line);
  byId("users").append(...lines);
  goOn(answer.next);
  showTimes(answer.users, mine);
  // The button may be gone, and what is new should be read next.
  lines[0]?.firstChild.focus();
}

function goOn(place) {
  next = place;
  byId("more-users").hidden = place === null;
}

function line({ user_id: id, length }) {
  const events = `${number(length)} ${length === 1 ? "event" : "events"}`;
  const button = element(
    "button",
    { type: "button", title: id },
    element("span", { class: "name" }, id),
    element("span", { class: "id" }, events, element("span", { class: "when" })),
  );
  button.dataset.user = id;
  mark(button);
  button.addEventListener("click", () => chosen(id));
  return element("li", {}, button);
}

function mark(button) {
  if (button.dataset.user === current) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}
