// The lists of two versions of a user side by side.
import {get} from "./api.js";
import {announce, h, number, percent, section, time, words} from "./dom.js";
import {picture} from "./tile.js";

const SHOWN = 20;

/** The view. */
export async function show(root, user, signal) {
  if (!user) {
    root.append(h("h1", {}, "Compare versions"), h("p", {class: "lead"}, "Enter a user id above: their lists of the champion, the challenger and the previous version stand side by side."));
    const {users} = await get("/v1/users/sample", {}, signal);
    root.append(h("ul", {class: "people"}, users.map((each) => h("li", {}, h("a", {href: `#/compare/${encodeURIComponent(each.user_id)}`}, h("strong", {}, each.user_id))))));
    return;
  }
  const answer = await get(`/v1/users/${encodeURIComponent(user)}/lists`, {context: "homepage", limit: SHOWN}, signal);
  root.append(h("div", {class: "title"}, h("h1", {}, user), h("p", {class: "facts"},
    answer.reads ? `reads the ${answer.reads}${answer.percent ? `; the challenger has ${number(answer.percent)} % of users` : ""}` : "")));
  if (answer.lists.length < 2) {
    root.append(h("p", {class: "notice"}, answer.lists.length ? "There is only one version so far: the next publish makes another to compare with."
      : "Nothing is published yet."));
    if (!answer.lists.length) return;
  }
  const last = answer.lists.length - 1;
  const choices = [0, Math.min(1, last)].map((chosen, side) => h("select", {id: `side-${side}`, onchange: () => draw(true)},
    answer.lists.map((list, i) => h("option", {value: i, selected: i === chosen}, `${list.role}: ${list.version}`))));
  const verdict = h("dl", {class: "figures wide"}), columns = h("div", {class: "versus"});
  root.append(h("div", {class: "tools"}, h("label", {for: "side-0"}, "Left"), choices[0], h("label", {for: "side-1"}, "Right"), choices[1]), verdict, columns);

  function draw(spoken) {
    const [left, right] = choices.map((choice) => answer.lists[Number(choice.value)]);
    const facts = compared(left.items, right.items);
    verdict.replaceChildren(...facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
    columns.replaceChildren(column(left, null), column(right, left));
    if (spoken) announce(facts.map(([name, value]) => `${name} ${value}`).join(", "));
  }
  draw(false);
}

function compared(left, right) {
  const ranks = new Map(left.map((item) => [item.item_id, item.rank]));
  const both = right.filter((item) => ranks.has(item.item_id));
  const moved = both.map((item) => Math.abs(item.rank - ranks.get(item.item_id)));
  const most = Math.max(left.length, right.length);
  return [["In both", `${both.length} of ${most}`], ["Overlap", most ? percent(both.length / most) : "–"],
          ["Same place", String(moved.filter((by) => by === 0).length)],
          ["Mean move", both.length ? `${number(moved.reduce((a, b) => a + b, 0) / both.length)} places` : "–"]];
}

function column(list, other) {
  const ranks = other && new Map(other.items.map((item) => [item.item_id, item.rank]));
  return section(`${list.role} list`, h("p", {class: "source"}, h("span", {class: "chip"}, list.personal ? "personal" : "popular"), ` model ${list.model_version} · made `, time(list.generated_at)),
    h("ol", {class: "compact"}, list.items.map((item) => h("li", {"data-item": item.item_id, onpointerenter: mark(true), onpointerleave: mark(false)},
      h("span", {class: "rank"}, String(item.rank)), picture(item),
      h("div", {}, h("p", {class: "name"}, item.metadata?.title || item.item_id), h("p", {class: "facts"}, `${words(item.rec_source)} · ${number(item.score)}`)),
      ranks ? move(ranks.get(item.item_id), item.rank) : h("span")))));
}

function move(was, now) {
  if (was === undefined) return h("span", {class: "moved new"}, "new");
  if (was === now) return h("span", {class: "moved"}, h("span", {"aria-hidden": "true"}, "="), h("span", {class: "visually-hidden"}, "same place"));
  const up = now < was;
  return h("span", {class: `moved ${up ? "up" : "down"}`}, h("span", {"aria-hidden": "true"}, up ? "▲" : "▼"), h("span", {class: "visually-hidden"}, up ? "up" : "down"), String(Math.abs(was - now)));
}

function mark(on) {
  return (event) => {
    const id = event.currentTarget.dataset.item;
    for (const row of document.querySelectorAll(".versus [data-item]")) row.classList.toggle("same", on && row.dataset.item === id);
  };
}
