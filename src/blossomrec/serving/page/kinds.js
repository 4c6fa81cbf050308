// Kinds of events: which one is wanted, which one is added, and which ones a history has.
import { byId, element } from "./elements.js";
import { ask } from "./server.js";

const ANY = "";
const MAX_EVENTS = 1000;

// kinds: names that the model knows; asks: whether it can be told which one is wanted.
export function offerKinds(kinds, asks) {
  fill("kind", "any", kinds);
  fill("event-kind", "no kind", kinds);
  byId("wanted").hidden = !asks || !kinds.length;
  byId("event-kind").hidden = !kinds.length;
}

// change: what is done when another kind is wanted.
export function listenToKinds(change) {
  byId("kind").addEventListener("change", change);
}

function fill(id, none, kinds) {
  const before = byId(id).value;
  const options = kinds.map((kind) => element("option", { value: kind }, kind));
  byId(id).replaceChildren(element("option", { value: ANY }, none), ...options);
  byId(id).value = kinds.includes(before) ? before : ANY;
}

// What a request says of the event that is wanted.
export function wanted() {
  return byId("wanted").hidden || byId("kind").value === ANY ? {} : { kind: byId("kind").value };
}

// The kind of the event that is added; null for none.
export function addedKind() {
  return byId("event-kind").hidden || byId("event-kind").value === ANY
    ? null
    : byId("event-kind").value;
}

// The last events of whoever is asked for: {item, kind, known}, and how many there are in all.
// unknown: the items of a pasted history that the model does not know.
export async function eventsOf(subject, unknown) {
  if (subject.user_id === undefined) {
    const { history, kinds } = subject;
    const strange = new Set(unknown.map(String));
    const events = history.map((item, index) => {
      return { item, kind: kinds?.[index], known: !strange.has(String(item)) };
    });
    return { events, length: history.length };
  }
  return ask(`v1/users/${encodeURIComponent(subject.user_id)}?last=${MAX_EVENTS}`);
}

// Kinds of items, null where they are not told, and the events that the model does not know: a list
// before the first item, and one behind each. The items are those of the other events: from the end
// on, the next one that is the same is the one.
export function placed(items, events) {
  const kinds = items.map(() => null);
  const unknown = [[], ...items.map(() => [])];
  let index = items.length - 1;
  for (const event of [...events].reverse()) {
    const { item, kind = null } = event;
    if (index >= 0 && String(item) === String(items[index])) {
      kinds[index] = kind;
      index -= 1;
    } else if (event.known === false) {
      unknown[index + 1].unshift({ item, kind });
    } else if (index < 0) {
      break;
    }
  }
  return { kinds, unknown };
}
