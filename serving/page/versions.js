// The versions of ranked lists: who sees which, and (for admins) flip, canary, promote and roll back.
import {get, post} from "./api.js";
import {announce, h, number, table, time, words} from "./dom.js";

const CANARY = 5;

export class Versions {
  constructor(signal) {
    this.signal = signal;
    this.said = "";
    this.surfaces = h("div", {});
    this.table = h("div", {});
    this.problem = h("p", {class: "notice", role: "alert", hidden: true});
    this.element = h("div", {}, this.problem, this.surfaces, this.table);
  }

  /** Reads the versions; draws only what changed, so that a focused button stays. */
  async read() {
    const models = await get("/v1/models", {}, this.signal);
    const {read_age_s: _, ...lasting} = models, said = JSON.stringify(lasting);
    if (said === this.said) return;
    this.said = said;
    const focused = this.element.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    this.draw(models);
    if (focused) [...this.element.querySelectorAll("button")].find((each) => each.getAttribute("aria-label") === focused)?.focus();
  }

  draw({surfaces, versions}) {
    this.surfaces.replaceChildren(...surfaces.map((each) => h("div", {class: "tools"}, h("strong", {}, each.surface),
      h("span", {class: "facts"}, each.challenger ? `${number(100 - each.percent)} % champion, ${number(each.percent)} % challenger` : "everybody sees the champion",
        each.pending ? " (being loaded)" : ""),
      each.challenger ? this.button("Promote", `Promote the challenger of ${each.surface}`, "promote", {surface: each.surface},
        `Everybody gets ${each.challenger}.`) : null,
      each.challenger || each.previous ? this.button("Roll back", `Roll back ${each.surface}`, "rollback", {surface: each.surface},
        each.challenger ? `The challenger ${each.challenger} is taken back.` : `Everybody gets ${each.previous} again.`) : null)));
    this.table.replaceChildren(versions.length ? table("Versions", ["Version", "State", "Model", "Lists", "Features as of", "Bundle", "Change"],
      versions.map((each) => [each.version, h("span", {class: `chip ${each.state === "shadow" ? "from-default" : ""}`}, each.state), each.model_version,
        number(each.users), time(each.as_of), each.bundle === "idle" ? "–" : words(each.bundle), this.changes(each, surfaces)]))
      : h("p", {class: "dim"}, "No version is complete yet."));
  }

  changes(version, surfaces) {
    const {surface} = version, pointer = surfaces.find((each) => each.surface === surface);
    if (!pointer || version.state === "champion" || version.state === "shadow") return "–";
    const flip = this.button("Flip", `Flip ${surface} to ${version.version}`, "flip", {surface, version: version.version}, `Everybody gets ${version.version} on ${surface}, at once.`);
    const canary = pointer.challenger ? null : this.button(`Canary ${CANARY} %`, `Canary of ${version.version}`, "canary", {surface, version: version.version, percent: CANARY},
      `${CANARY} % of the users get ${version.version} on ${surface}.`);
    return h("span", {class: "buttons"}, flip, canary);
  }

  button(text, label, action, body, consequence) {
    return h("button", {type: "button", class: "quiet", "aria-label": label, onclick: () => this.ask(text, action, body, consequence)}, text);
  }

  ask(text, action, body, consequence) {
    const dialog = document.getElementById("ask-dialog");
    dialog.replaceChildren(h("form", {method: "dialog", onsubmit: () => this.change(text, action, body)}, h("h2", {id: "ask-title"}, `${text}?`), h("p", {}, consequence),
      h("p", {class: "buttons"}, h("button", {}, text), h("button", {type: "button", class: "quiet", onclick: () => dialog.close()}, "Cancel"))));
    dialog.showModal();
  }

  async change(text, action, body) {
    try {
      await post(`/v1/models/${action}`, body);
      this.problem.hidden = true;
      await this.read();
      announce(`${text}: done`);
    } catch (error) {
      this.problem.textContent = `${text}: ${error.message}`;
      this.problem.hidden = false;
    }
  }
}
