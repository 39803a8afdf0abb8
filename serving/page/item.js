// An item in a dialog: what it is, and what is like it.
import {DONE, TYPES} from "./actions.js";
import {get} from "./api.js";
import {announce, h, number, percent, words} from "./dom.js";
import {picture} from "./tile.js";

const LIMIT = 8;

/** Opens the dialog of an item; onact(type, item) is told what is done in it. */
export async function openItem({item, user, signal, onact}) {
  const dialog = document.getElementById("item-dialog");
  const list = h("div", {"aria-live": "polite"}, h("p", {class: "dim"}, "Looking for similar items…"));
  const meta = item.metadata ?? {};
  const title = h("h2", {id: "item-title"}, meta.title || item.item_id);
  const facts = h("p", {class: "facts"}, [item.item_id, meta.category, meta.price !== null && meta.price !== undefined ? number(meta.price) : null].filter(Boolean).join(" · "));
  const diversity = h("input", {id: "diversity", type: "range", min: "0", max: "1", step: "0.1", value: "0.2", onchange: () => load()});
  const act = (type) => () => {
    dialog.close();
    onact(type, item);
    announce(`${DONE[type]} ${title.textContent}`);
  };
  dialog.replaceChildren(
    h("div", {class: "sheet-head"}, picture(item), h("div", {}, title, facts, item.explanation ? h("p", {class: "reason"}, item.explanation.reason) : null,
      h("div", {class: "actions"}, ["click", "save", "cart", "purchase"].map((type) => h("button", {type: "button", class: "quiet", onclick: act(type)}, TYPES[type])))),
    h("button", {type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close()}, h("span", {"aria-hidden": "true"}, "×"))),
    h("h3", {}, "Similar items"),
    h("div", {class: "tools"}, h("label", {for: "diversity"}, "Variety"), diversity), list);
  if (!dialog.open) dialog.showModal();
  else dialog.querySelector(".close").focus(); // what had the focus has gone

  async function load() {
    try {
      const path = `/v1/items/${encodeURIComponent(item.item_id)}/similar`;
      const answer = await get(path, {user_id: user, limit: LIMIT, diversity: diversity.value}, signal);
      list.replaceChildren(answer.items.length ? h("ol", {class: "similar"}, answer.items.map((each) => row(each)))
        : h("p", {class: "dim"}, "Nothing is known to be like it."));
    } catch (error) {
      if (!signal.aborted) list.replaceChildren(h("p", {class: "notice", role: "alert"}, error.message));
    }
  }

  function row(each) {
    const shared = sharedWords(each.shared_attributes);
    return h("li", {}, picture(each), h("div", {}, h("button", {type: "button", class: "title-button",
      onclick: () => openItem({item: each, user, signal, onact})}, each.metadata?.title || each.item_id),
    h("p", {class: "facts"}, h("span", {class: "chip"}, words(each.similarity_type)), `similarity ${percent(each.similarity_score)}`),
    shared ? h("p", {class: "facts"}, `both: ${shared}`) : null));
  }

  await load();
}

/** ["Drama"] or {category: "Drama"} or [{name, value}] as words. */
function sharedWords(shared) {
  if (!shared) return "";
  const parts = Array.isArray(shared) ? shared.map((each) => (typeof each === "object" ? `${words(each.name)} ${each.value}` : String(each)))
    : Object.entries(shared).map(([name, value]) => `${words(name)} ${Array.isArray(value) ? value.join(", ") : value}`);
  return parts.join(" · ");
}
