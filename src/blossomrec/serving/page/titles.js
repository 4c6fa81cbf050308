// Titles of items, where the server knows any; without one an item is called by its id.
import { ask } from "./server.js";

const AT_ONCE = 1000;

const titles = new Map();
let known = true;

export function named(item) {
  return titles.get(String(item)) || String(item);
}

export function hasTitle(item) {
  return Boolean(titles.get(String(item)));
}

// Learn the titles of some items; gives whether the server has titles at all.
export async function learnTitles(ids) {
  const missing = [...new Set(ids.map(String))].filter((id) => !titles.has(id));
  for (let start = 0; known && start < missing.length; start += AT_ONCE) {
    const asked = missing.slice(start, start + AT_ONCE);
    const answer = await ask("v1/titles", { items: asked });
    known = answer.known;
    asked.forEach((id, index) => titles.set(id, answer.titles[index]));
  }
  return known;
}

// The id of what was typed: an id, or a title that one item alone is known to have.
export function idOf(text) {
  if (titles.has(text)) return text;
  const wanted = text.toLowerCase();
  const found = [...titles].filter(([, title]) => title?.toLowerCase() === wanted);
  return found.length === 1 ? found[0][0] : text;
}

// What is typed for an item: its title, if that leads back to it.
export function typed(item) {
  return idOf(named(item)) === String(item) ? named(item) : String(item);
}
