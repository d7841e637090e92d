// The page: which view the address asks for, and the daemon's news to it.

import { mark, say } from "./element.js";
import { Feed } from "./feed.js";
import { GpuHistory } from "./gpu_history.js";
import { Overview } from "./overview.js";
import { bytesOf, clock, percent } from "./quantities.js";
import { RulePage } from "./rule.js";
import { RunPage } from "./run.js";

const VIEWS = [
  [/^#\/run\/(.+)$/, RunPage],
  [/^#\/rule\/(\w+)$/, RulePage],
];
const place = (id) => document.getElementById(id);
const history = new GpuHistory();
let view = null;
let snapshot = null;
let started = null; // of the daemon that we heard last

function show() {
  view?.close();
  const [found] = VIEWS.flatMap(([pattern, View]) => {
    const match = location.hash.match(pattern);
    return match ? [new View({ history }, decoded(match[1]))] : [];
  });
  view = found ?? new Overview({ history });
  document.title = view.title;
  place("main").replaceChildren(view.root);
  scrollTo(0, 0);
  if (snapshot) view.update(snapshot, true);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // not an address of ours: the view says that there is nothing of that name
  }
}

async function take(news, isFirst) {
  const restarted = started !== null && news.daemon.started !== started;
  started = news.daemon.started;
  snapshot = news;
  if (isFirst) await history.load();
  history.add(news);
  view.update(news, isFirst || restarted);
  tellDaemon(news, restarted);
}

let restartedAt = null;

function tellDaemon({ daemon, host, components, driver_version: driver, wall_seconds: now }, restarted) {
  if (restarted) restartedAt = now;
  const ram = host ? bytesOf(host.memory_used_bytes, host.memory_size_bytes) : "";
  say(place("host"), host ? `CPU ${percent(host.cpu_utilization_ratio)} · RAM ${ram}` : "");
  const again = restartedAt !== null ? ` (restarted while you looked, at ${clock(restartedAt)})` : "";
  const since = `gpuwatch ${daemon.version}, running since ${clock(daemon.started)}${again}`;
  say(place("daemon"), `${since}, recording to ${daemon.logdir}${driver ? `, driver ${driver}` : ""}`);
  const down = Object.entries(components).map(([name, error]) => `${name} is down${error ? `: ${error}` : ""}`);
  place("trouble").hidden = down.length === 0;
  say(place("trouble"), down.join("; "));
}

function tellLink(state, text) {
  say(place("link"), text);
  mark(place("link"), state);
  document.body.classList.toggle("stale", state === "lost");
}

addEventListener("hashchange", show);
show();
new Feed(take, tellLink);
