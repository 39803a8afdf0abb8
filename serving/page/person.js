// One user: what is recommended and why, what is known of them, and what changes when they do something.
import {Actions, DONE, TYPES} from "./actions.js";
import {every, get} from "./api.js";
import {announce, h, number, section, time, words} from "./dom.js";
import {openItem} from "./item.js";
import {Knowledge} from "./knowledge.js";
import {RankedList} from "./ranked.js";

const CONTEXTS = [["homepage", "Homepage"], ["item", "Item page"], ["cart", "Cart"], ["email", "E-mail"]];
const PAGE_SIZE = 12, PROFILE_MS = 5_000;

/** The view: without a user, whom one could look at. */
export async function show(root, user, signal) {
  if (!user) return people(root, signal);
  const view = new Person(root, user, signal);
  await view.start();
}

async function people(root, signal) {
  const {users} = await get("/v1/users/sample", {}, signal);
  root.append(
    h("div", {class: "hero"}, h("h1", {}, "Whose recommendations?"),
      h("p", {class: "lead"}, "See what beamrec knows of a user, what it shows them and why. Act as them: the list follows within seconds.")),
    users.length ? section("Some users", h("ul", {class: "people"}, users.map((each) => h("li", {},
      h("a", {href: `#/user/${encodeURIComponent(each.user_id)}`}, h("strong", {}, each.user_id),
        h("span", {}, each.segment ? words(each.segment) : "no history yet"),
        each.last_title ? h("span", {class: "dim"}, `last: ${each.last_title}`) : null)))))
      : h("p", {class: "notice"}, "Nothing is published yet. Any id works: a user nobody has seen gets what is popular."),
    h("p", {class: "dim"}, "Or enter any user id above. Somebody new? ",
      h("a", {href: `#/user/${encodeURIComponent(`guest-${Math.random().toString(36).slice(2, 8)}`)}`}, "Start as a guest"), "."));
}

class Person {
  constructor(root, user, signal) {
    Object.assign(this, {root, user, signal, context: "homepage", answer: null, profile: null, anchor: ""});
    this.list = new RankedList({onact: (type, item) => this.act(type, item), onopen: (item) => this.open(item)});
    this.knowledge = new Knowledge((item) => this.open(item));
    this.actions = new Actions(user, () => this.readProfile(), signal);
    this.journal = h("ol", {class: "journal", "aria-label": "What you did as this user"});
    this.source = h("p", {class: "source"});
    this.more = h("button", {type: "button", class: "quiet", onclick: () => this.nextPage()}, "Show more");
    this.where = h("select", {id: "context", onchange: () => this.switchContext()},
      CONTEXTS.map(([value, name]) => h("option", {value}, name)));
  }

  async start() {
    const status = h("p", {class: "dim"}, "Reading…");
    this.title = h("h1", {}, this.user);
    this.root.append(h("div", {class: "title"}, this.title, this.facts = h("p", {class: "facts"})), status);
    const [answer] = await Promise.all([this.readList(), this.readProfile()]);
    status.remove();
    this.root.append(h("div", {class: "columns"},
      h("div", {class: "first"}, section("Recommended",
        h("div", {class: "tools"}, h("label", {for: "context"}, "Shown on"), this.where,
          h("button", {type: "button", class: "quiet", onclick: () => this.reload()}, "Refresh")),
        this.source, this.list.element, this.more)),
      h("div", {class: "second"}, section("What happened", this.hint = h("p", {class: "dim"},
        "Choose an item or one of the actions below it: a real event is posted, and this fills up."), this.journal),
      this.knowledge.element)));
    this.showAnswer(answer);
    every(PROFILE_MS, this.signal, () => this.readProfile().catch(() => {}));
  }

  parameters() {
    const around = this.context === "item" || this.context === "cart" ? this.anchor || this.profile?.history[0]?.item_id : null;
    return {user_id: this.user, context: this.context, item_id: around, page_size: PAGE_SIZE};
  }

  async readList() {
    if (this.context !== "homepage" && !this.profile) await this.readProfile();
    return get("/v1/recommendations", this.parameters(), this.signal);
  }

  async readProfile() {
    this.profile = await get(`/v1/users/${encodeURIComponent(this.user)}/profile`, {}, this.signal);
    this.knowledge.show(this.profile);
    const {segment, low_confidence: young, known} = this.profile;
    this.facts.textContent = !known ? "Never seen before" : [segment ? `${words(segment)} user` : "", young ? "known for less than a day" : "",
      `${number(this.profile.history.length)} recent items`].filter(Boolean).join(" · ");
    return this.profile;
  }

  showAnswer(answer) {
    this.answer = answer;
    const moves = this.list.show(answer.items, answer);
    this.source.replaceChildren(h("span", {class: `chip tier-${answer.served_from}`}, words(answer.served_from)),
      ` model ${answer.model_version} · made `, time(answer.generated_at));
    this.more.hidden = !answer.next_cursor;
    return moves;
  }

  async reload() {
    const moves = this.showAnswer(await this.readList());
    announce(moves ? `List changed: ${moves}` : "The list is as it was");
    return moves;
  }

  async nextPage() {
    const page = await get("/v1/recommendations", {...this.parameters(), cursor: this.answer.next_cursor}, this.signal);
    this.answer = {...page, items: [...this.answer.items, ...page.items]};
    this.list.add(page.items, page);
    this.more.hidden = !page.next_cursor;
    announce(`${page.items.length} more items`);
  }

  async switchContext() {
    this.context = this.where.value;
    this.showAnswer(await this.readList());
    announce(`Recommendations for ${this.where.selectedOptions[0].textContent}`);
  }

  open(item) {
    openItem({item, user: this.user, signal: this.signal, onact: (type, other) => this.act(type, other)});
  }

  async act(type, item) {
    if (type === "cart" || type === "click") this.anchor = item.item_id;
    const title = item.metadata?.title || item.item_id;
    const steps = h("span", {class: "steps"}, "sending…");
    this.hint.hidden = true;
    this.journal.prepend(h("li", {}, h("span", {}, `${DONE[type]} `, h("strong", {}, title)), steps));
    const say = (...parts) => { steps.textContent = parts.filter(Boolean).join(" · "); };
    const fields = {item_id: item.item_id, surface: this.context, request_id: item.request_id ?? this.answer.request_id,
                    page_position: item.rank ?? null, model_version: item.model_version ?? this.answer.model_version};
    const sent = await this.actions.send(type, fields);
    if (sent.refused) {
      say(`not accepted: ${sent.refused}`);
      return announce(`${title}: not accepted, ${sent.refused}`);
    }
    const accepted = `accepted in ${sent.seconds}`;
    say(accepted);
    announce(`${TYPES[type]} accepted`);
    const first = await this.reload().catch(() => "");
    say(accepted, first && `list: ${first}`, "waiting for features…");
    const seen = await this.actions.wait(type, item.item_id, sent.at);
    if (this.signal.aborted) return;
    const second = seen.seconds ? await this.reload().catch(() => "") : "";
    const changed = [first, second].filter(Boolean).join(", then ");
    say(accepted, seen.seconds ? `in features after ${seen.seconds}` : seen.reason, changed ? `list: ${changed}` : "list unchanged");
    steps.parentElement.classList.add("done");
  }
}
