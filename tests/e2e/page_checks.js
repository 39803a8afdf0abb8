// What is wrong with the page as it is now, for people who see little, hear it, or use keys only: a list of sentences.
(() => {
  const wrong = [];
  const where = (e) => `${e.tagName.toLowerCase()}${e.id ? `#${e.id}` : ""}${e.className && typeof e.className === "string" ? `.${e.className.split(" ")[0]}` : ""}`;
  const shown = (e) => e.checkVisibility({visibilityProperty: true}) && e.getClientRects().length > 0 && !e.closest(".visually-hidden") && !e.closest("[aria-hidden=true]");
  const byId = (ids) => ids.split(" ").map((id) => document.getElementById(id)?.textContent ?? "").join(" ").trim();
  const nameOf = (e) => e.getAttribute("aria-label")?.trim() || (e.getAttribute("aria-labelledby") && byId(e.getAttribute("aria-labelledby")))
    || [...(e.labels ?? [])].map((l) => l.textContent.trim()).join(" ") || (/^(INPUT|SELECT|TEXTAREA)$/.test(e.tagName) ? "" : e.textContent.trim()) || e.getAttribute("alt") || "";

  if (!document.documentElement.lang) wrong.push("the page names no language");
  if (!document.title.trim()) wrong.push("the page has no title");
  for (const landmark of ["header", "nav", "main", "footer"]) if (document.querySelectorAll(landmark).length !== 1) wrong.push(`not one ${landmark}`);
  if (document.querySelectorAll("h1").length !== 1) wrong.push(`${document.querySelectorAll("h1").length} h1`);
  if (!document.querySelector("[aria-live]")) wrong.push("nothing is announced");
  let level = 0;
  for (const heading of document.querySelectorAll("main h1, main h2, main h3, main h4")) {
    const now = Number(heading.tagName[1]);
    if (now > level + 1) wrong.push(`${heading.tagName} "${heading.textContent}" after h${level}`);
    level = now;
  }
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of ids.filter((id, i) => ids.indexOf(id) !== i)) wrong.push(`id ${id} twice`);
  for (const attribute of ["aria-labelledby", "aria-describedby", "for"]) {
    for (const e of document.querySelectorAll(`[${attribute}]`)) {
      if (e.closest("dialog:not([open])") || e.matches("dialog:not([open])")) continue;
      for (const id of e.getAttribute(attribute).split(" ")) if (!document.getElementById(id)) wrong.push(`${where(e)}: ${attribute} ${id} is not there`);
    }
  }
  for (const e of document.querySelectorAll("a[href], button, input, select, textarea, summary, dialog[open], [role=region], nav")) {
    if ((shown(e) || e.matches("dialog, nav")) && !nameOf(e)) wrong.push(`${where(e)} has no name`);
  }
  for (const e of document.querySelectorAll("[tabindex]")) if (Number(e.getAttribute("tabindex")) > 0) wrong.push(`${where(e)}: tabindex above 0`);
  for (const e of document.querySelectorAll("img")) if (!e.hasAttribute("alt")) wrong.push(`${where(e)} has no alt`);
  for (const e of document.querySelectorAll("ol, ul")) if ([...e.children].some((c) => c.tagName !== "LI")) wrong.push(`${where(e)} holds what is no li`);
  for (const e of document.querySelectorAll("[style]")) if (!e.getAttribute("style").startsWith("--share")) wrong.push(`${where(e)} has a style of its own`);
  for (const e of document.querySelectorAll("a[href], button, input, select, summary")) {
    const box = e.getBoundingClientRect(), inText = e.tagName === "A" && e.closest("p");
    if (shown(e) && !inText && (box.height < 24 || box.width < 24)) wrong.push(`${where(e)} "${nameOf(e)}" is ${Math.round(box.width)} x ${Math.round(box.height)}: under 24`);
  }

  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, i) => v * a + under[i] * (1 - a));
  const ground = (e) => { const stack = []; for (let at = e; at; at = at.parentElement) { const c = rgba(getComputedStyle(at).backgroundColor); stack.push(c); if (c[3] === 1) break; }
    return stack.reverse().reduce((under, c) => over(c, under), [255, 255, 255]); };
  const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const e = node.parentElement;
    if (!node.textContent.trim() || seen.has(e) || !shown(e) || e.closest("option")) continue;
    seen.add(e);
    const style = getComputedStyle(e), under = ground(e), [a, b] = [light(over(rgba(style.color), under)), light(under)].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`${where(e)} "${node.textContent.trim().slice(0, 30)}": contrast ${ratio.toFixed(2)}`);
  }
  if (document.documentElement.scrollWidth > innerWidth) {
    const wide = [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll")).slice(0, 3).map(where);
    wrong.push(`the page is ${document.documentElement.scrollWidth} wide in ${innerWidth}: ${wide.join(", ")}`);
  }
  return wrong;
})()
