// Events posted as the user, and how long each takes until the stream's features know it.
import {credentials, get} from "./api.js";
import {span} from "./dom.js";

/** What can be done to an item: event type -> the button's words. */
export const TYPES = {click: "Click", save: "Save", cart: "Add to cart", purchase: "Buy", skip: "Not for me"};
export const DONE = {click: "Clicked", save: "Saved", cart: "Put into the cart", purchase: "Bought", skip: "Skipped"};
const WAIT_S = 30, FAST_S = 6, POLL_MS = 300;

export class Actions {
  /** readProfile: a promise of the user's profile now. */
  constructor(user, readProfile, signal) {
    Object.assign(this, {readProfile, signal, counts: {}});
    this.lost = new Map();
    this.client = window.beamrec.client({url: location.origin, userId: user, waitMs: 0, maxTries: 3, minRetryMs: 300,
      headers: credentials(), onDrop: (event, reason) => this.lost.set(event.event_id, reason)});
    signal.addEventListener("abort", () => this.client.close(), {once: true});
  }

  /** Posts an event: {at, seconds} once it is durable, or {refused: reason}. */
  async send(type, fields) {
    const server = await get("/v1/status", {}, this.signal).catch(() => null);
    if (server && server.events === null) return {refused: "this server takes no events; start it as: beamrec serve --log dir:workspace/log"};
    this.counts[type] = count(await this.readProfile().catch(() => null), type);
    const at = Date.now(), started = performance.now();
    const id = this.client.track(type, {...fields, device: matchMedia("(max-width: 40rem)").matches ? "mobile" : "desktop"});
    await this.client.flush();
    if (this.lost.has(id)) return {refused: this.lost.get(id)};
    return {at, seconds: span((performance.now() - started) / 1000)};
  }

  /** Resolves when features show the event: {seconds}, or {reason} why they do not. */
  async wait(type, itemId, at) {
    while (!this.signal.aborted) {
      const profile = await this.readProfile().catch(() => null), waited = (Date.now() - at) / 1000;
      if (profile && knows(profile, type, itemId, at, this.counts[type])) return {seconds: span(waited)};
      if (profile && !profile.stream?.alive && waited > FAST_S) return {reason: "the stream is not running, so features stay as the batch made them"};
      if (waited > WAIT_S) return {reason: `not in the features after ${WAIT_S} s`};
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    return {reason: "left"};
  }
}

function count(profile, type) {
  const found = profile?.features[`count_${type}_day`];
  return found?.source === "stream" ? found.value : 0;
}

function knows(profile, type, itemId, at, before) {
  const items = profile.features.recent_items;
  const listed = items?.source === "stream" && items.value.some((each) => each.id === itemId && Date.parse(each.at) >= at);
  return listed || count(profile, type) > before;
}
