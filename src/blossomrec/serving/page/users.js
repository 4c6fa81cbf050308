// The users to choose from: those who had events last come first, more of them on demand.
import { byId, element, moment, number } from "./elements.js";
import { ask } from "./server.js";

const LISTED = 12;

// Where the list goes on; null at its end. Only the last list that was asked for is drawn.
let next = null;
let turn = 0;
let current = null;
let chosen = () => {};

// choose: what is done with the id of a user.
export function listenToUsers(choose, fail) {
  chosen = choose;
  byId("more-users").addEventListener("click", () => more().catch(fail));
}

// Gives the users that are listed now.
export async function listUsers() {
  const mine = ++turn;
  byId("latest").setAttribute("aria-busy", "true");
  try {
    const answer = await ask(`v1/users?limit=${LISTED}`);
    if (mine === turn) draw(answer);
    return answer.users;
  } finally {
    if (mine === turn) byId("latest").removeAttribute("aria-busy");
  }
}

function draw(answer) {
  byId("users").replaceChildren(...answer.users.map(line));
  const words = answer.users.length
    ? "Or one of those who had events last:"
    : "No user has events yet. Type an id and add a first event, paste a history, or load " +
      "histories with blossomrec import-events.";
  byId("users-note").textContent = words;
  goOn(answer.next);
}

// Say whose history is shown; null for nobody's.
export function markUser(id) {
  current = id;
  for (const button of byId("users").querySelectorAll("button")) mark(button);
}

async function more() {
  const mine = ++turn;
  byId("latest").removeAttribute("aria-busy");
  const answer = await ask(`v1/users?limit=${LISTED}&before=${encodeURIComponent(next)}`);
  if (mine !== turn) return;
  const lines = answer.users.map(line);
  byId("users").append(...lines);
  goOn(answer.next);
  // The button may be gone, and what is new should be read next.
  lines[0]?.firstChild.focus();
}

function goOn(place) {
  next = place;
  byId("more-users").hidden = place === null;
}

function line({ user_id: id, length, timestamp }) {
  const events = `${number(length)} ${length === 1 ? "event" : "events"}`;
  const button = element(
    "button",
    { type: "button", title: id },
    element("span", { class: "name" }, id),
    element("span", { class: "id" }, `${events}, ${moment(timestamp)}`),
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
