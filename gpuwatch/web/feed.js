// The daemon's news: server-sent events while they can be had, else a question now and then. Nothing while nobody looks.

const POLL_MS = 2000;
const RETRY_MS = 1000;
const STREAM_AGAIN_MS = 30000;
//: An event comes each second; a stream that is silent for longer hangs, wherever.
const SILENT_MS = 6000;

/** onSnapshot(snapshot, isFirst): isFirst after each (re)connection, when history has to be read again. onLink(state, text). */
export class Feed {
  constructor(onSnapshot, onLink) {
    this.onSnapshot = onSnapshot;
    this.onLink = onLink;
    this.stream = null;
    this.timer = null;
    this.watchdog = null;
    this.fresh = true;
    this.lostAt = null;
    document.addEventListener("visibilitychange", () => (document.hidden ? this.stop() : this.start()));
    if (!document.hidden) this.start();
  }

  start() {
    this.stop();
    this.onLink("connecting", "connecting …");
    this.listen();
  }

  // A hidden page holds no connection: the daemon has room for few, and a browser keeps only six to one host.
  stop() {
    this.stream?.close();
    this.stream = null;
    clearTimeout(this.timer);
    clearTimeout(this.watchdog);
    this.fresh = true;
  }

  listen() {
    const stream = new EventSource("api/events");
    this.stream = stream;
    this.expect();
    stream.onmessage = (event) => {
      this.expect();
      this.take(event.data, "live", "live");
    };
    stream.onerror = () => this.fallBack();
  }

  expect() {
    clearTimeout(this.watchdog);
    this.watchdog = setTimeout(() => this.fallBack(), SILENT_MS);
  }

  // The stream ended or was refused; a plain question tells whether the daemon is there.
  fallBack() {
    this.stop();
    this.poll(performance.now() + STREAM_AGAIN_MS);
  }

  async poll(streamAgainAt) {
    let text = null;
    const asked = this.timer;
    try {
      const response = await fetch("api/live", { signal: AbortSignal.timeout(5000) });
      if (response.ok) text = await response.text();
    } catch {
      // no daemon there: that is what the next lines say
    }
    if (this.stream || asked !== this.timer || document.hidden) return;
    if (text === null) {
      this.lostAt ??= Date.now();
      this.fresh = true;
      const since = new Date(this.lostAt).toLocaleTimeString("en-GB");
      this.onLink("lost", `the daemon has not answered since ${since}; trying again every second`);
      this.timer = setTimeout(() => this.poll(0), RETRY_MS);
      return;
    }
    const wasLost = this.lostAt !== null;
    const told = `asking every ${POLL_MS / 1000} s: the daemon has no room for another live page`;
    if (wasLost) this.take(text, "connecting", "connecting …");
    else this.take(text, "polling", told);
    if (wasLost || performance.now() > streamAgainAt) this.listen();
    else this.timer = setTimeout(() => this.poll(streamAgainAt), POLL_MS);
  }

  take(text, state, told) {
    const snapshot = JSON.parse(text);
    this.lostAt = null;
    this.onLink(state, told);
    const first = this.fresh;
    this.fresh = false;
    this.onSnapshot(snapshot, first);
  }
}
