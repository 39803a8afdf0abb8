/* beamrec's browser client: batches events, sends each until it is answered, always with the same event_id.
 *
 *   <script src="http://COLLECTOR/client.js"></script>
 *   const events = beamrec.client({url: "http://COLLECTOR", userId: "u1"});
 *   events.track("click", {item_id: "i1", surface: "homepage"});
 *
 * Nothing is kept in cookies or storage. What waits when the page goes away is handed to sendBeacon, or with a key, which a
 * beacon cannot carry, to fetch with keepalive. A key in a page is everybody's who reads it, and writes items too: where that
 * matters let your own site's server add it.
 * Options: url, userId, key, headers {}, batchSize 50, waitMs 500, maxQueue 1000, minRetryMs 500, maxRetryMs 30000, maxTries 12,
 * onDrop(event, reason): told of every event that is given up: rejected, too_large, queue_full, gave_up.
 */
(function (root) {
  "use strict";

  var MAX_BEACON_BYTES = 60000; // browsers hold 64 KiB for all beacons of a page

  function eventId() {
    if (root.crypto && root.crypto.randomUUID) return root.crypto.randomUUID();
    var bytes = new Uint8Array(16);
    if (root.crypto && root.crypto.getRandomValues) root.crypto.getRandomValues(bytes);
    else for (var i = 0; i < 16; i++) bytes[i] = Math.floor(Math.random() * 256);
    return Array.from(bytes, function (b) { return (b + 256).toString(16).slice(1); }).join("");
  }

  function client(options) {
    var url = options.url.replace(/\/$/, "") + "/v1/events";
    var own = Object.assign(options.key ? {Authorization: "Bearer " + options.key} : {}, options.headers);
    var batchSize = Math.min(options.batchSize || 50, 1000), waitMs = options.waitMs === undefined ? 500 : options.waitMs;
    var maxQueue = options.maxQueue || 1000, maxTries = options.maxTries || 12;
    var minRetry = options.minRetryMs || 500, maxRetry = options.maxRetryMs || 30000;
    var drop = options.onDrop || function () {};
    var queue = [], sending = null, timer = null, failures = 0, closed = false, waiting = [];

    function settle() {
      if (queue.length || sending) return;
      waiting.splice(0).forEach(function (done) { done(); });
    }

    function track(type, fields) {
      var event = Object.assign({user_id: options.userId, occurred_at: Date.now(), event_id: eventId()}, fields,
                                {event_type: type});
      if (queue.length >= maxQueue) drop(queue.shift(), "queue_full"); // the newest events say most
      queue.push(event);
      if (queue.length >= batchSize && !failures) flush();
      else schedule(waitMs);
      return event.event_id;
    }

    function schedule(ms) {
      if (timer === null && !sending && !closed) timer = root.setTimeout(function () { timer = null; send(); }, ms);
    }

    function send() {
      if (sending || !queue.length) return settle();
      var batch = queue.splice(0, batchSize);
      sending = batch;
      root.fetch(url, {method: "POST", body: JSON.stringify(batch), keepalive: false,
                       headers: Object.assign({"Content-Type": "application/json"}, own)})
        .then(function (response) {
          return response.json().catch(function () { return {}; }).then(function (answer) { answered(batch, response, answer); });
        }, function () { again(batch, 0); });
    }

    function answered(batch, response, answer) {
      if (sending !== batch) return; // a beacon has taken it over
      var outcomes = answer.events || [];
      if (response.status === 429 || response.status >= 500) {
        return again(batch.filter(function (_, i) { return !outcomes[i] || outcomes[i].status === "unavailable"; }),
                     1000 * (Number(response.headers.get("Retry-After")) || 0));
      }
      if (response.status === 413 && batch.length > 1) { // in halves, so that one huge event takes no other with it
        batchSize = Math.max(1, Math.floor(batch.length / 2));
        queue = batch.concat(queue);
      } else {
        batch.forEach(function (event, i) {
          if (response.status === 202 || response.status === 422) {
            if (outcomes[i] && outcomes[i].status === "rejected") drop(event, "rejected: " + outcomes[i].reason);
          } else drop(event, response.status === 413 ? "too_large" : "refused: " + response.status);
        });
      }
      sending = null;
      failures = 0;
      if (queue.length) schedule(queue.length >= batchSize ? 0 : waitMs);
      settle();
    }

    function again(batch, afterMs) {
      if (sending === null) return;
      sending = null;
      failures++;
      var kept = batch.filter(function (event) {
        var tries = (event_tries.get(event) || 0) + 1;
        event_tries.set(event, tries);
        if (tries >= maxTries) drop(event, "gave_up");
        return tries < maxTries;
      });
      queue = kept.concat(queue);
      while (queue.length > maxQueue) drop(queue.shift(), "queue_full");
      var most = Math.min(maxRetry, minRetry * Math.pow(2, failures - 1));
      schedule(Math.max(afterMs, most / 2 + Math.random() * most / 2)); // half of it by chance: clients do not march in step
      settle();
    }
    var event_tries = new WeakMap();

    function flush() {
      if (timer !== null) { root.clearTimeout(timer); timer = null; }
      var done = new Promise(function (resolve) { waiting.push(resolve); });
      send();
      return done;
    }

    function beacon(body) { // text/plain, so no preflight is needed
      if (!Object.keys(own).length) return root.navigator.sendBeacon(url, body);
      root.fetch(url, {method: "POST", body: body, keepalive: true, headers: Object.assign({"Content-Type": "application/json"}, own)})
        .catch(function () {}); // the page is gone: there is nobody to tell
      return true;
    }

    function leave() { // the page may never come back: also what is on its way, for its answer may not arrive
      var left = (sending || []).concat(queue);
      if (!left.length || !root.navigator || !root.navigator.sendBeacon) return;
      sending = null;
      queue = [];
      while (left.length) {
        var some = left.splice(0, batchSize), body = JSON.stringify(some);
        while (some.length > 1 && body.length > MAX_BEACON_BYTES) {
          left = some.splice(Math.ceil(some.length / 2)).concat(left);
          body = JSON.stringify(some);
        }
        if (!beacon(body)) {
          queue = some.concat(left);
          break;
        }
      }
      if (queue.length) schedule(minRetry);
      settle();
    }

    function onVisibility() { if (root.document.visibilityState === "hidden") leave(); }
    if (root.addEventListener) root.addEventListener("pagehide", leave);
    if (root.document && root.document.addEventListener) root.document.addEventListener("visibilitychange", onVisibility);

    return {
      track: track,
      flush: flush, // a promise: everything so far has been answered or given up
      waiting: function () { return queue.length + (sending ? sending.length : 0); },
      setUser: function (userId) { options = Object.assign({}, options, {userId: userId}); },
      close: function () {
        leave();
        closed = true;
        if (timer !== null) root.clearTimeout(timer);
        if (root.removeEventListener) root.removeEventListener("pagehide", leave);
        if (root.document && root.document.removeEventListener) root.document.removeEventListener("visibilitychange", onVisibility);
      },
    };
  }

  root.beamrec = Object.assign(root.beamrec || {}, {client: client});
})(typeof window !== "undefined" ? window : globalThis);
