// Elements made of text and attributes only, so that nothing a server sends is read as markup.

export function byId(id) {
  return document.getElementById(id);
}

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

export function number(value) {
  return value.toLocaleString("en");
}

export function percent(value) {
  return `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
}

// With a sign, also for people who do not see the colour.
export function signed(value) {
  const text = Math.abs(value).toFixed(3);
  return Number(text) === 0 ? "0" : `${value < 0 ? "\u2212" : "+"}${text}`;
}

const ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"];

// index is counted from 0: "first layer" or, of many, "layer 12"; brief: "1st".
export function nthLayer(index) {
  return index < ORDINALS.length ? `${ORDINALS[index]} layer` : `layer ${index + 1}`;
}

export function brief(index) {
  const teens = index % 100 >= 10 && index % 100 <= 12;
  return `${index + 1}${(!teens && ["st", "nd", "rd"][index % 10]) || "th"}`;
}

export function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

// The unit of a timestamp is its sender's. Read as seconds, milliseconds, microseconds or
// nanoseconds since 1970 it is at least in 1973; a smaller number counts something else.
export function moment(timestamp) {
  const unit = [1e8, 1e11, 1e14, 1e17].findLastIndex((least) => timestamp >= least);
  if (unit < 0 || timestamp >= 1e20) return `time ${number(timestamp)}`;
  const date = new Date(timestamp * 10 ** (3 - 3 * unit));
  const ago = Date.now() - date.getTime();
  if (ago < 0 || ago >= DAY) return date.toISOString().slice(0, 10);
  if (ago < MINUTE) return "just now";
  return ago < HOUR ? `${Math.floor(ago / MINUTE)} min ago` : `${Math.floor(ago / HOUR)} h ago`;
}
