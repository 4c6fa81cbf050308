// What can be measured of a page's accessibility; gives a list of complaints in words.
(() => {
  const complaints = [];
  // Not inside details that are closed, either.
  const shown = (one) => one.checkVisibility();
  const name = (one) => `${one.tagName.toLowerCase()}#${one.id}.${one.className}`;

  const channels = (colour) => {
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
    const scale = colour.startsWith("color(") ? 1 : 255;
    return { rgb: [red / scale, green / scale, blue / scale], alpha };
  };
  const luminance = (rgb) => {
    const linear = rgb.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const background = (one) => {
    for (let at = one; at !== null; at = at.parentElement) {
      const { rgb, alpha } = channels(getComputedStyle(at).backgroundColor);
      if (alpha === 1) return rgb;
    }
    return [1, 1, 1];
  };
  const contrast = (one, colour) => {
    const lights = [luminance(channels(colour).rgb), luminance(background(one))].sort((a, b) => a - b);
    return (lights[1] + 0.05) / (lights[0] + 0.05);
  };

  for (const one of document.querySelectorAll("body *")) {
    const text = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || !shown(one) || one.tagName === "NOSCRIPT") continue;
    const ratio = contrast(one, getComputedStyle(one).color);
    if (ratio < 4.5) complaints.push(`contrast ${ratio.toFixed(2)} of ${name(one)}`);
  }
  for (const one of document.querySelectorAll("input, textarea, select")) {
    const labelled = one.labels.length || one.getAttribute("aria-label");
    if (shown(one) && !labelled) complaints.push(`no label for ${name(one)}`);
    const ratio = contrast(one.parentElement, getComputedStyle(one).borderTopColor);
    if (shown(one) && ratio < 3) complaints.push(`border ${ratio.toFixed(2)} of ${name(one)}`);
  }
  for (const one of document.querySelectorAll("button")) {
    if (!(one.getAttribute("aria-label") ?? one.innerText).trim() && shown(one))
      complaints.push(`no name for ${name(one)}`);
    const { width, height } = one.getBoundingClientRect();
    if (shown(one) && Math.min(width, height) < 44) complaints.push(`small: ${name(one)}`);
  }
  for (const one of document.querySelectorAll("[aria-labelledby], [aria-describedby]")) {
    for (const attribute of ["aria-labelledby", "aria-describedby"]) {
      const id = one.getAttribute(attribute);
      if (id !== null && !document.getElementById(id)) complaints.push(`${attribute} ${id}`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  if (new Set(ids).size !== ids.length) complaints.push("an id stands twice");
  const levels = [...document.querySelectorAll("h1, h2, h3")].map((one) => Number(one.tagName[1]));
  if (levels.some((level, index) => level > (levels[index - 1] ?? 0) + 1))
    complaints.push(`headings ${levels}`);
  if (document.documentElement.scrollWidth > innerWidth)
    complaints.push(`wider than the window: ${document.documentElement.scrollWidth}`);
  return complaints;
})();
