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

export function milliseconds(value) {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}
