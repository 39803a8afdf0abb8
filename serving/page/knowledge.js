// What the features say of a user: session, taste, history, and every value with its source and age.
import {get} from "./api.js";
import {age, bar, h, number, section, span, table, time, words} from "./dom.js";

const TOP = 6, HISTORY = 12;

export class Knowledge {
  /** onopen(item): somebody wants to see an item. */
  constructor(onopen) {
    Object.assign(this, {onopen, profile: null, registry: null, shown: ""});
    this.stream = h("p", {class: "pulse"});
    this.session = h("dl", {class: "figures"});
    this.taste = h("div", {});
    this.history = h("ol", {class: "history"});
    this.filter = h("input", {id: "feature-filter", type: "search", autocomplete: "off", oninput: () => this.features()});
    this.all = h("input", {id: "feature-all", type: "checkbox", onchange: () => this.features()});
    this.rows = h("div", {});
    this.details = h("details", {ontoggle: () => this.features()}, h("summary", {}, this.summary = h("span", {}, "All features")),
      h("div", {class: "tools"}, h("label", {for: "feature-filter"}, "Filter"), this.filter,
        h("span", {class: "check"}, this.all, h("label", {for: "feature-all"}, "defaults too"))), this.rows);
    this.element = h("div", {class: "knowledge"}, section("Right now", this.stream, this.session, this.taste),
      section("Recent events", this.history), section("Features", this.details));
  }

  /** Shows a profile; parts that did not change are left alone, so that nothing jumps under a reader. */
  show(profile) {
    this.profile = profile;
    this.pulse();
    this.figures();
    this.tastes();
    this.items();
    const from = (source) => Object.values(profile.features).filter((each) => each.source === source).length;
    this.summary.textContent = `All features: ${from("stream")} from the stream, ${from("batch")} from the batch`;
    if (this.details.open) this.features();
  }

  value(name) {
    const found = this.profile.features[name];
    return found && found.source !== "default" ? found.value : null;
  }

  pulse() {
    const {stream} = this.profile;
    this.stream.className = `pulse ${stream?.alive ? "live" : "still"}`;
    this.stream.textContent = stream?.alive ? `Stream live, heard of ${age(stream.age_s) === "now" ? "just now" : `${span(stream.age_s)} ago`}`
      : stream ? `Stream silent for ${span(stream.age_s)}: batch values are used` : "No stream is running: batch values are used";
  }

  figures() {
    const facts = [["Session", this.value("session_events"), (n) => `${number(n)} ${n === 1 ? "event" : "events"}`], ["Lasts", this.value("session_length_s") || null, span],
                   ["Clicks today", this.value("count_click_day"), number], ["Views today", this.value("count_view_day"), number],
                   ["Active days of 30", this.value("active_days_30d"), number], ["Mean price", this.value("price_mean_30d"), number]];
    this.session.replaceChildren(...facts.filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value, say]) => h("div", {}, h("dt", {}, name), h("dd", {}, say(value)))));
  }

  tastes() {
    const parts = [];
    for (const [name, title, kind] of [["category_preference", "Taste, last hours", "stream"], ["category_affinity_30d", "Taste, 30 days", "batch"]]) {
      const value = this.value(name);
      if (!value?.length) continue;
      const most = value[0].score;
      parts.push(h("h3", {}, title, " ", source(this.profile.features[name])), h("ul", {class: "meters"},
        value.slice(0, TOP).map((each) => bar(each.id, each.score / most, `${Math.round(each.score * 100)} %`, kind))));
    }
    this.taste.replaceChildren(...(parts.length ? parts : [h("p", {class: "dim"}, "No taste is known yet.")]));
  }

  items() {
    const rows = this.profile.history.slice(0, HISTORY), now = JSON.stringify(rows);
    if (now === this.shown) return;
    this.shown = now;
    this.history.replaceChildren(...(rows.length ? rows.map((each) => h("li", {}, h("button", {type: "button", class: "link", onclick: () => this.onopen({item_id: each.item_id, metadata: {title: each.title}})},
      each.title || each.item_id), time(each.at))) : [h("li", {class: "dim"}, "None that is known.")]));
  }

  async features() {
    if (!this.details.open || !this.profile) return;
    this.registry ??= await get("/page/features.json").catch(() => ({}));
    const wanted = this.filter.value.trim().toLowerCase();
    const rows = Object.entries(this.profile.features)
      .filter(([name, each]) => (this.all.checked || each.source !== "default") && (name.includes(wanted.replaceAll(" ", "_")) || each.source.includes(wanted)))
      .map(([name, each]) => [h("span", {title: this.registry[name]?.description}, words(name)), said(each), source(each)]);
    const focused = document.activeElement === this.rows.firstElementChild;
    this.rows.replaceChildren(rows.length ? table("Features", ["Feature", "Value", "Source, age"], rows, "features")
      : h("p", {class: "dim"}, "None matches."));
    if (focused) this.rows.firstElementChild.focus({preventScroll: true});
  }
}

function said({value, label}) {
  if (Array.isArray(value)) return value.length ? `${value.slice(0, 3).map((each) => each.id).join(", ")}${value.length > 3 ? ` +${value.length - 3}` : ""}` : "–";
  return label || number(value);
}

function source({source: name, age_s: seconds}) {
  return h("span", {class: `chip from-${name}`}, name === "default" ? "default" : `${name}, ${age(seconds)}`);
}
