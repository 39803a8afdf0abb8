// Elements, words and times. Text only ever becomes text: nothing here parses HTML.

/** An element: h("a", {href, class, onclick, "aria-label"}, children...); null children and false attributes are left out. */
export function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** As h, of SVG. */
export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "vars") for (const [key, said] of Object.entries(value)) element.style.setProperty(key, said);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const said = document.getElementById("said");

/** Tells people who listen to the page. */
export function announce(text) {
  said.textContent = "";
  requestAnimationFrame(() => { said.textContent = text; });
}

const whole = new Intl.NumberFormat("en");

/** 1234.5 -> "1,235", 0.0123 -> "0.0123": three figures that matter below a thousand. */
export function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Math.abs(value) >= 1000 || Number.isInteger(value)) return whole.format(Math.round(value));
  return String(Number(value.toPrecision(3)));
}

/** 0.0734 -> "7.3 %". */
export function percent(value) {
  return value === null || value === undefined ? "–" : `${number(Number((value * 100).toPrecision(3)))} %`;
}

/** Seconds as people say them: "3 s", "12 min", "5 h", "9 days". */
export function span(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h`;
  return `${whole.format(Math.round(seconds / 86400))} days`;
}

/** How old something is: "now", "3 s", "9 days". */
export const age = (seconds) => (seconds !== null && seconds < 1 ? "now" : span(seconds));

const day = new Intl.DateTimeFormat("en", {day: "numeric", month: "short", year: "numeric", timeZone: "UTC"});
const moment = new Intl.DateTimeFormat("en", {day: "numeric", month: "short", hour: "2-digit", minute: "2-digit",
                                              hourCycle: "h23", timeZone: "UTC"});

/** An RFC 3339 time as a <time>; older than half a year it is a date. */
export function time(text) {
  const at = new Date(text);
  if (!text || Number.isNaN(at.getTime())) return h("span", {}, "–");
  const old = Date.now() - at.getTime() > 180 * 86_400_000;
  return h("time", {datetime: text, title: `${text} UTC`}, (old ? day : moment).format(at));
}

/** "time_machine" -> "time machine". */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** A table with a caption that is read and not shown. rows: arrays of cells; heads: texts. */
export function table(caption, heads, rows, className = "") {
  return h("div", {class: "scroll", role: "region", "aria-label": caption, tabindex: "0"},
    h("table", {class: className}, h("caption", {class: "visually-hidden"}, caption),
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", {scope: "col"}, head)))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, i) =>
        i === 0 ? h("th", {scope: "row"}, cell) : h("td", {}, cell)))))));
}

/** A section with a heading of its own. */
export function section(title, ...children) {
  const id = `s-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return h("section", {"aria-labelledby": id}, h("h2", {id}, title), ...children);
}

/** A labelled bar, 0 to 1. */
export function bar(label, share, said, kind = "") {
  return h("li", {class: `meter ${kind}`, vars: {"--share": String(Math.max(0, Math.min(1, share)))}},
    h("span", {class: "meter-name"}, label), h("span", {class: "meter-said"}, said), h("span", {class: "meter-bar", "aria-hidden": "true"}));
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
