// Which view is shown, by the part of the address behind "#": /, /user/ID, /compare/ID, /health.
import {key, setKey} from "./api.js";
import {h} from "./dom.js";
import * as compare from "./compare.js";
import * as health from "./health.js";
import * as person from "./person.js";

const main = document.getElementById("main");
const box = document.getElementById("user");
let current = null;

function route() {
  const [, view = "", id = ""] = location.hash.replace(/^#/, "").split("/");
  const user = decode(id);
  if (view === "health") return {view, name: "Health", user: "", show: health.show};
  if (view === "compare") return {view, name: user ? `Compare for ${user}` : "Compare", user, show: compare.show};
  return {view: "person", name: user ? `User ${user}` : "People", user: view === "user" ? user : "", show: person.show};
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

async function show(moved) {
  current?.abort();
  const mine = current = new AbortController();
  const there = route();
  document.title = `${there.name} · beamrec`;
  box.value = there.user || box.value;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    if (link.dataset.view === there.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
    if (link.dataset.view !== "health") {
      const base = link.dataset.view === "compare" ? "#/compare" : "#/user";
      link.href = box.value ? `${base}/${encodeURIComponent(box.value)}` : base === "#/user" ? "#/" : base;
    }
  }
  document.querySelectorAll("dialog[open]").forEach((dialog) => dialog.close());
  const root = h("div", {class: `view view-${there.view}`});
  main.replaceChildren(root);
  if (moved) {
    main.focus({preventScroll: true});
    scrollTo(0, 0);
  }
  try {
    await there.show(root, there.user, mine.signal);
  } catch (error) {
    if (!mine.signal.aborted) root.replaceChildren(problem(error, () => show(false)));
  }
}

function problem(error, again) {
  return h("div", {class: "notice", role: "alert"}, h("h1", {}, error.title || "Something went wrong"),
    h("p", {}, error.message), h("button", {type: "button", onclick: again}, "Try again"));
}

document.getElementById("find").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = box.value.trim();
  if (!user) return;
  const there = `#/${route().view === "compare" ? "compare" : "user"}/${encodeURIComponent(user)}`;
  if (location.hash === there) show(true);
  else location.hash = there;
});

document.getElementById("key-button").addEventListener("click", () => {
  const dialog = document.getElementById("ask-dialog");
  const input = h("input", {id: "key", type: "password", autocomplete: "off", value: key()});
  dialog.replaceChildren(h("form", {method: "dialog", onsubmit: () => { setKey(input.value.trim()); show(false); }},
    h("h2", {id: "ask-title"}, "API key"),
    h("p", {}, "Kept until this tab is closed. A server without a keys file needs none."),
    h("label", {for: "key"}, "Key"), input,
    h("p", {class: "buttons"}, h("button", {}, "Use it"),
      h("button", {type: "button", class: "quiet", onclick: () => dialog.close()}, "Cancel"))));
  dialog.showModal();
});

document.querySelector(".skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // the part behind "#" names the view
  main.focus();
});

addEventListener("hashchange", () => show(true));
show(false);
