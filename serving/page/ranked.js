// A ranked list whose rows stay the same elements when the order changes, so that people see (and hear) what moved.
import {TYPES} from "./actions.js";
import {h, number, reducedMotion, words} from "./dom.js";
import {picture} from "./tile.js";

export class RankedList {
  /** onact(type, item), onopen(item): what is done to an item. */
  constructor({onact, onopen}) {
    Object.assign(this, {onact, onopen, rows: new Map()});
    this.element = h("ol", {class: "ranked"});
  }

  /** Shows a list; says what moved since the one before ("2 up, 1 new"), "" for nothing. */
  show(items, answer) {
    const first = !this.rows.size;
    const before = new Map([...this.rows].map(([id, row]) => [id, {rank: row.rank, top: row.element.getBoundingClientRect().top}]));
    const kept = new Map();
    for (const item of items) kept.set(item.item_id, this.row(item, answer));
    const focused = document.activeElement?.closest?.(".ranked > li");
    const lost = focused && ![...kept.values()].some((row) => row.element === focused) ? focused : null;
    const next = lost && [...this.element.children].slice([...this.element.children].indexOf(lost) + 1)
      .find((row) => [...kept.values()].some((each) => each.element === row));
    const spot = focused && !lost ? document.activeElement : null;
    this.element.replaceChildren(...[...kept.values()].map((row) => row.element));
    this.rows = kept;
    spot?.focus({preventScroll: true});
    if (lost) (next || this.element.firstElementChild)?.querySelector("button")?.focus({preventScroll: true});
    return first ? "" : this.moves(before);
  }

  /** Appends a page. */
  add(items, answer) {
    for (const item of items) {
      const row = this.row(item, answer);
      this.rows.set(item.item_id, row);
      this.element.append(row.element);
    }
  }

  moves(before) {
    const counts = {up: 0, down: 0, new: 0, gone: 0};
    for (const [id, row] of this.rows) {
      const was = before.get(id), kind = !was ? "new" : row.rank < was.rank ? "up" : row.rank > was.rank ? "down" : "";
      row.mark(kind, was ? Math.abs(was.rank - row.rank) : 0);
      if (kind) counts[kind]++;
      if (!reducedMotion() && kind) {
        const from = was ? `translateY(${was.top - row.element.getBoundingClientRect().top}px)` : "translateY(0.5rem)";
        row.element.animate([{transform: from, opacity: was ? 1 : 0}, {transform: "none", opacity: 1}], {duration: 420, easing: "cubic-bezier(.2,.8,.2,1)"});
      }
    }
    for (const id of before.keys()) if (!this.rows.has(id)) counts.gone++;
    return Object.entries(counts).filter(([, n]) => n).map(([kind, n]) => `${n} ${kind}`).join(", ");
  }

  row(item, answer) {
    const known = this.rows.get(item.item_id);
    const row = known || new Row(this, item);
    row.update({...item, request_id: answer.request_id, model_version: answer.model_version});
    return row;
  }
}

class Row {
  constructor(list, item) {
    const act = (type) => () => list.onact(type, this.item);
    this.numeral = h("span", {class: "rank"});
    this.moved = h("span", {class: "moved"});
    this.reason = h("p", {class: "reason"});
    this.facts = h("p", {class: "facts"});
    const title = item.metadata?.title || item.item_id;
    const name = (label) => `${label}: ${title}`;
    this.element = h("li", {"data-item": item.item_id},
      h("div", {class: "place"}, this.numeral, this.moved), picture(item),
      h("div", {class: "about"},
        h("h3", {}, h("button", {type: "button", class: "title-button", onclick: act("click"), title: "Click it as this user"}, title)),
        this.reason, this.facts,
        h("div", {class: "actions", role: "group", "aria-label": `Actions for ${title}`},
          Object.entries(TYPES).filter(([type]) => type !== "click").map(([type, label]) =>
            h("button", {type: "button", class: "link", "aria-label": name(label), onclick: act(type)}, label)),
          h("button", {type: "button", class: "link", "aria-label": name("Similar"), onclick: () => list.onopen(this.item)}, "Similar"))));
  }

  update(item) {
    this.item = item;
    this.rank = item.rank;
    this.numeral.textContent = String(item.rank);
    this.reason.textContent = item.explanation.reason;
    const {category, price} = item.metadata ?? {};
    this.facts.replaceChildren(h("span", {class: "chip"}, words(item.rec_source)),
      [category, price !== null && price !== undefined ? number(price) : null, `score ${number(item.score)}`].filter(Boolean).join(" · "));
    this.mark("", 0);
  }

  mark(kind, by) {
    this.moved.className = `moved ${kind}`;
    this.moved.replaceChildren(...(!kind ? [] : kind === "new" ? ["new"] :
      [h("span", {"aria-hidden": "true"}, kind === "up" ? "▲" : "▼"), h("span", {class: "visually-hidden"}, kind), String(by)]));
  }
}
