// How the whole is: freshness, lag, throughput, what was refused, versions, tiers, what was shown.
import {every, get} from "./api.js";
import {bar, h, number, percent, section, span, svg, words} from "./dom.js";
import {Versions} from "./versions.js";

const POLL_MS = 2_000, KEPT = 60;
const TIERS = ["list", "expired_list", "previous_list", "on_demand", "segment_popular", "popular", "popular_in_memory"];
const STAGES = {read: "read from the log", user_state: "in the user's state", user_stored: "readable, users", item_state: "in the item's state",
                item_stored: "readable, items"};

/** The view; polls while it is shown. */
export async function show(root, _, signal) {
  const view = new Health(root, signal);
  await view.read();
  view.build();
  every(POLL_MS, signal, () => view.read());
}

class Health {
  constructor(root, signal) {
    Object.assign(this, {root, signal, past: [], rates: []});
    this.verdict = h("p", {class: "pulse"});
    this.figures = h("dl", {class: "figures wide"});
    this.spark = svg("svg", {class: "spark", viewBox: `0 0 ${KEPT - 1} 40`, preserveAspectRatio: "none", role: "img"});
    this.parts = Object.fromEntries(["breakers", "tiers", "rejected", "stages", "lag", "shown"].map((name) => [name, h("div", {})]));
    this.versions = new Versions(signal);
  }

  build() {
    const panel = (title, ...parts) => section(title, ...parts);
    const versions = panel("Versions", this.versions.element);
    versions.classList.add("full");
    this.root.append(h("div", {class: "title"}, h("h1", {}, "Health"), this.verdict), this.figures, h("div", {class: "panels"},
      panel("Throughput", this.spark, this.throughput = h("p", {class: "facts"})), panel("Tiers that answered", this.parts.tiers),
      panel("Freshness and lag", this.parts.stages, this.parts.lag), panel("Rejected events", this.parts.rejected),
      panel("What was shown", this.parts.shown), panel("Dependencies", this.parts.breakers), versions));
    this.draw();
  }

  async read() {
    const [status, versions] = await Promise.allSettled([get("/v1/status", {}, this.signal), this.versions.read()]);
    if (this.signal.aborted) return;
    const failed = [status, versions].find((each) => each.status === "rejected");
    this.lost = failed ? failed.reason.message : null;
    if (status.status === "fulfilled") this.past = [...this.past.slice(-1), {at: performance.now(), ...status.value}];
    else if (versions.status === "rejected" && !this.past.length) throw failed.reason;
    if (this.throughput) this.draw();
  }

  /** What a counter of the status grew by in a second since the poll before. */
  rate(of) {
    if (this.past.length < 2) return null;
    const [before, now] = this.past;
    return Math.max(0, (of(now) - of(before)) / ((now.at - before.at) / 1000));
  }

  draw() {
    const now = this.past.at(-1);
    this.verdict.className = `pulse ${!this.lost && now.status === "ready" ? "live" : "bad"}`;
    this.verdict.textContent = this.lost ? `${this.lost} What is shown is from before.` : now.status === "ready" ? "Ready: everything it reads answers"
      : `${words(now.status)}: something it reads is away, and it answers all the same`;
    if (!now) return;
    this.drawFigures(now);
    this.drawSpark();
    this.drawTiers(now);
    this.drawStream(now.stream);
    this.drawRejected(now);
    this.parts.shown.replaceChildren(now.shown ? h("ul", {class: "meters"}, bar("Coverage: active items shown", now.shown.coverage, percent(now.shown.coverage)),
      bar("Gini: 0 all alike, 1 one item only", now.shown.gini, number(now.shown.gini), "warm")) : h("p", {class: "dim"}, "Nothing yet."));
    this.parts.breakers.replaceChildren(h("ul", {class: "meters"}, Object.entries(now.breakers).map(([name, state]) => h("li", {class: "meter"},
      h("span", {class: "meter-name"}, words(name)), h("span", {class: `chip ${state === "closed" ? "" : "bad"}`}, state === "closed" ? "well" : words(state))))),
    now.truth ? h("p", {class: "facts"}, `Told to the log for training: ${Object.entries(now.truth).map(([outcome, n]) => `${number(n)} ${outcome}`).join(", ") || "nothing yet"}`) : "");
  }

  drawFigures(now) {
    const stored = now.stream?.freshness?.user_stored;
    const facts = [["Requests", `${number(this.rate((s) => s.requests.total) ?? 0)}/s`, `${number(now.requests.total)} so far`],
      ["Request p99", now.requests.p99_ms === null ? "–" : `${number(now.requests.p99_ms)} ms`, `p50 ${number(now.requests.p50_ms)} ms`],
      ["Events", now.events ? `${number(this.rate((s) => s.events?.accepted ?? 0) ?? 0)}/s` : "–", now.events ? `${number(now.events.accepted)} so far` : "taken elsewhere"],
      ["Freshness p99", stored ? upTo(stored.p99_s) : "–", "accepted to readable"],
      ["Stream", now.stream ? span(now.stream.age_s) : "none", now.stream ? (now.stream.alive ? "since heard of" : "silent: batch values") : "batch values"],
      now.stream?.lag ? ["Lag", number(total(now.stream.lag)), "records that wait"]
        : ["Lag", now.stream ? span(now.stream.watermark_delay_s) : "–", "of event time behind the clock"]];
    this.figures.replaceChildren(...facts.map(([name, value, more]) => h("div", {}, h("dt", {}, name), h("dd", {}, value, h("small", {}, more)))));
  }

  drawSpark() {
    const requests = this.rate((s) => s.requests.total), events = this.rate((s) => s.events?.accepted ?? 0);
    if (requests !== null) this.rates = [...this.rates, {requests, events}].slice(-KEPT);
    const most = Math.max(1, ...this.rates.flatMap((each) => [each.requests, each.events]));
    const line = (name) => this.rates.map((each, i) => `${i + KEPT - this.rates.length},${(38 - 36 * each[name] / most).toFixed(1)}`).join(" ");
    this.spark.replaceChildren(svg("polyline", {points: line("events"), fill: "none", stroke: "currentColor", "stroke-width": 1, opacity: 0.45, "vector-effect": "non-scaling-stroke", "stroke-dasharray": "3 3"}),
      svg("polyline", {points: line("requests"), fill: "none", stroke: "currentColor", "stroke-width": 2, "vector-effect": "non-scaling-stroke"}));
    const said = `${number(requests ?? 0)} requests/s, ${number(events ?? 0)} events/s (dashed); highest of two minutes ${number(most)}/s`;
    this.spark.setAttribute("aria-label", said);
    this.throughput.textContent = said;
  }

  drawTiers({tiers}) {
    const all = total(tiers);
    const names = [...TIERS.filter((name) => tiers[name]), ...Object.keys(tiers).filter((name) => !TIERS.includes(name))];
    this.parts.tiers.replaceChildren(all ? h("ul", {class: "meters"}, names.map((name) => bar(words(name), tiers[name] / all, `${percent(tiers[name] / all)} · ${number(tiers[name])}`,
      name === "list" ? "" : name === "on_demand" ? "batch" : "warm"))) : h("p", {class: "dim"}, "No list was asked for yet."));
  }

  drawStream(stream) {
    const order = Object.keys(STAGES);
    const stages = Object.entries(stream?.freshness ?? {}).sort(([a], [b]) => order.indexOf(a) - order.indexOf(b));
    const most = Math.max(0.001, ...stages.map(([, each]) => each.p99_s ?? 60));
    this.parts.stages.replaceChildren(stages.length ? h("ul", {class: "meters"}, stages.map(([name, each]) =>
      bar(STAGES[name] ?? words(name), (each.p99_s ?? 60) / most, `p50 ${upTo(each.p50_s)} · p99 ${upTo(each.p99_s)}`)))
      : h("p", {class: "dim"}, stream ? "No event has come through yet." : "No streaming job has written its status."));
    const lags = Object.entries(stream?.lag ?? {}), highest = Math.max(1, ...lags.map(([, records]) => records));
    this.parts.lag.replaceChildren(
      stream ? h("p", {class: "facts"}, stream.watermark_delay_s === null ? "the job has ended, or knows no event yet" : `Event time is complete up to ${span(stream.watermark_delay_s)} ago; ${number(stream.events)} events counted`) : "",
      lags.length ? h("ul", {class: "meters"}, lags.map(([partition, records]) => bar(`partition ${partition}`, records / highest, number(records), records > 1000 ? "warm" : ""))) : "");
  }

  drawRejected({events, stream}) {
    const counts = {...stream?.rejected};
    for (const [reason, n] of Object.entries(events?.rejected ?? {})) counts[reason] = (counts[reason] ?? 0) + n;
    if (stream?.late) counts.too_late_for_the_stream = stream.late;
    const reasons = Object.entries(counts).sort((a, b) => b[1] - a[1]), most = Math.max(1, ...reasons.map(([, n]) => n));
    this.parts.rejected.replaceChildren(reasons.length ? h("ul", {class: "meters"}, reasons.map(([reason, n]) => bar(words(reason), n / most, number(n), "warm")))
      : h("p", {class: "dim"}, events ? "None since this server started." : "This server takes no events: a collector does, or none."));
  }
}

/** Seconds of a stage: a server that gives none has seen more than a minute. */
const upTo = (seconds) => (seconds === null ? "over a minute" : span(seconds));
const total = (counts) => Object.values(counts ?? {}).reduce((a, b) => a + b, 0);
