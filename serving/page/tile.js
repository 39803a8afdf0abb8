// What stands for an item without a picture: a drawing made of its id, always the same one.
import {h, svg} from "./dom.js";

/** A 32-bit FNV-1a hash. */
export function hash(text) {
  let value = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193);
  return value >>> 0;
}

const PALETTE = [["#1d4b43", "#e9c46a"], ["#5b2a3c", "#f0b7a4"], ["#243b6b", "#a9c7e8"], ["#6b4423", "#f1d9b5"],
                 ["#2f5d3a", "#c9dd9b"], ["#4b3a72", "#d8c3ef"], ["#7a2e1d", "#f6c28b"], ["#20535e", "#9fd8cf"],
                 ["#3d3d3d", "#d6cfc2"], ["#6a1f4a", "#f3a6c0"]];

/** The picture of an item: its image, or a tile; never in the way of a reader, for the title stands beside it. */
export function picture(item) {
  const url = item.metadata?.image;
  if (typeof url === "string" && /^(https:\/\/|\/)/.test(url)) {
    const image = h("img", {class: "tile", src: url, alt: "", loading: "lazy", decoding: "async", referrerpolicy: "no-referrer",
                            width: 160, height: 160});
    image.addEventListener("error", () => image.replaceWith(tile(item)), {once: true});
    return image;
  }
  return tile(item);
}

function tile(item) {
  const seed = hash(item.item_id), category = item.metadata?.category || item.metadata?.categories?.[0] || item.item_id;
  const [ground, ink] = PALETTE[hash(String(category)) % PALETTE.length];
  const shapes = [];
  const at = (i) => ((seed >>> (i * 4)) & 15) / 15;
  if (seed % 3 === 0) for (let i = 0; i < 4; i++) {
    shapes.push(svg("circle", {cx: 80, cy: 80, r: 16 + 18 * i + 8 * at(i), fill: "none", stroke: ink, "stroke-width": 2 + 7 * at(i + 4)}));
  } else if (seed % 3 === 1) for (let i = 0; i < 6; i++) {
    shapes.push(svg("rect", {x: 12 + 24 * i, y: 140 - 110 * at(i), width: 12, height: 150, fill: ink, opacity: 0.35 + 0.6 * at(i + 1)}));
  } else for (let i = 0; i < 5; i++) {
    shapes.push(svg("path", {d: `M-10 ${20 + 34 * i} Q ${40 + 80 * at(i)} ${-30 + 60 * at(i + 1) + 34 * i} 170 ${30 + 34 * i}`,
                             fill: "none", stroke: ink, "stroke-width": 2 + 8 * at(i + 2), opacity: 0.5 + 0.5 * at(i + 3)}));
  }
  return svg("svg", {class: "tile", viewBox: "0 0 160 160", "aria-hidden": "true", focusable: "false"},
    svg("rect", {width: 160, height: 160, fill: ground}), shapes);
}
